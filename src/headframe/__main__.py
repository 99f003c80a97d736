"""`python -m headframe` is the `headframe` command."""

from headframe.cli.main import main

if __name__ == "__main__":
    main()
