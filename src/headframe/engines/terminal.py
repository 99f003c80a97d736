"""What keeps a shell beside running work: the command is started in the work's groups, with the terminal if there is one, and when it ends all that it started ends, too.
It imports nothing of Headframe.

Run as ``python -I -S terminal.py terminal|plain DESCRIPTOR``, with the command's argument vector, environment, directory and groups as JSON on that descriptor.
"""

import ctypes
import fcntl
import json
import os
import signal
import sys
import termios

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
END_TRIES = 200
GENTLY_S = 3
"""What has to tell others that it ends gets so long, once whoever asked for it is gone."""


def main():
    with os.fdopen(int(sys.argv[2]), encoding="utf-8") as told:
        asked = json.loads(told.read())
    os.setsid()
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if not child:
        become(asked, terminal=sys.argv[1] == "terminal")
    signal.signal(signal.SIGUSR1, lambda *_: (forward(child, signal.SIGTERM), signal.alarm(GENTLY_S)))
    signal.signal(signal.SIGALRM, lambda *_: forward(child, signal.SIGKILL))
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    if os.getppid() != asked["parent"]:  # it was killed before we could ask to be told
        os.kill(os.getpid(), signal.SIGUSR1)
    for number in FORWARDED:
        signal.signal(number, lambda heard, _: forward(child, heard))
    for handle in (0, 1, 2):  # they are the command's: while we hold them nobody learns that it has let go
        os.dup2(os.open(os.devnull, os.O_RDWR), handle)
    code = wait(child)
    end_tree()
    os._exit(code if code >= 0 else 128 - code)


def become(asked, terminal):
    try:
        os.setsid()
        if terminal:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        for group in asked["cgroups"]:
            try:
                with open(os.path.join(group, "cgroup.procs"), "w", encoding="ascii") as procs:
                    procs.write("0")
            except OSError:
                pass  # the work has just ended, and so will this
        for number in (*FORWARDED, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.chdir(asked["cwd"])
        os.umask(0o077)
        os.execvpe(asked["argv"][0], asked["argv"], asked["env"])
    except OSError as error:
        os.write(2, f"can't start {asked['argv'][0]}: {error}\r\n".encode())
    finally:
        os._exit(127)


def forward(child, number):
    try:
        os.killpg(child, number)
    except ProcessLookupError:
        pass


def wait(child):
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return 0
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def end_tree():
    """Orphans of the command come to us: none is left when this returns."""
    for _ in range(END_TRIES):
        try:
            with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
                children = [int(pid) for pid in file.read().split()]
        except OSError:
            return
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


main()
