"""A shell beside work that Slurm runs: a step of the same job, by `srun --overlap`, which enters the work's own directory and environment. Slurm confines it as it confines
the job, carries the terminal, and ends it with the job.
"""

import os
import shutil
from pathlib import Path

from headframe.engines.runtime import LOGIN
from headframe.engines.shell import Shell, ShellAsk, open_shell
from headframe.engines.slurm.directory import owner_of
from headframe.model.engine import EngineSetup
from headframe.model.errors import Conflicting

ENTER = (
    "import json, os, pwd, sys\n"
    "spec = json.load(open(sys.argv[1]))\n"
    "env = {**spec['env'], **{name: os.environ[name] for name in spec.get('inherit', ()) if name in os.environ}, 'TERM': sys.argv[2]}\n"
    "env.setdefault('HOME', pwd.getpwuid(os.getuid()).pw_dir)\n"
    "os.chdir(spec['cwd'])\n"
    "os.umask(0o077)\n"
    "try:\n    os.execvpe(sys.argv[3], sys.argv[3:], env)\n"
    'except OSError as error:\n    sys.stderr.write(f"can\'t start {sys.argv[3]}: {error}\\r\\n")\n    os._exit(127)\n'
)
"""What the step runs: our own text; what a tenant wrote comes as arguments."""


def open_step(setup: EngineSetup, account: str, job: int, node: str, rank: Path, ask: ShellAsk, container: str) -> Shell:
    """Start it as the work's own account on the machine of that rank, in `container` where the work is in one. Raises Conflicting where this server can't, or OSError."""
    srun = shutil.which("srun")
    if srun is None:
        raise Conflicting("the server's machine has no srun", "install Slurm's client commands there (Debian: slurm-client)")
    inner = ["podman", "exec", "--interactive", *(["--tty"] if ask.rows else []), container] if container else []
    argv = [*inner, *(ask.argv or ("/bin/sh", "-c", LOGIN))]
    step = [
        f"--jobid={job}",
        "--overlap",
        "--nodes=1",
        "--ntasks=1",
        f"--nodelist={node}",
        "--mpi=none",
        "--quiet",
        "--export=PATH",
        "--pty" if ask.rows else "--unbuffered",
    ]
    command = [*_become(account), srun, *step, setup.python, "-I", "-S", "-c", ENTER, str(rank / "spec.json"), ask.term, *argv]
    env = {name: os.environ[name] for name in ("PATH", "SLURM_CONF", "HOME", "LANG") if name in os.environ}
    return open_shell(ask, command, env, "/", (), gently=True)


def _become(account: str) -> list[str]:
    """What runs the rest as that account: only root may become another. Slurm lets nobody but the job's own account into it."""
    try:
        owner = owner_of(account)
    except ValueError as no:
        raise Conflicting(str(no), "look at its log") from None
    return [] if owner is None else ["setpriv", f"--reuid={owner[0]}", f"--regid={owner[1]}", "--clear-groups", "--"]
