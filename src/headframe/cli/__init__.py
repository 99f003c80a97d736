"""Words for people: the `headframe` command."""
