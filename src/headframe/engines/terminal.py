"""What starts a shell beside running work: joins the work's groups, takes the terminal if there is one, and becomes the command. It imports nothing of Headframe.

Run as ``python -I -S terminal.py terminal|plain DESCRIPTOR``, with the command's argument vector, environment, directory and groups as JSON on that descriptor.
"""

import fcntl
import json
import os
import signal
import sys
import termios


def main():
    with os.fdopen(int(sys.argv[2]), encoding="utf-8") as told:
        asked = json.loads(told.read())
    os.setsid()
    if sys.argv[1] == "terminal":
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for group in asked["cgroups"]:
        try:
            with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as procs:
                procs.write("0")
        except OSError:
            pass  # the work has just ended, and so will this
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.chdir(asked["cwd"])
        os.umask(0o077)
        os.execvpe(asked["argv"][0], asked["argv"], asked["env"])
    except OSError as error:
        os.write(2, f"can't start {asked['argv'][0]}: {error}\r\n".encode())
        os._exit(127)


main()
