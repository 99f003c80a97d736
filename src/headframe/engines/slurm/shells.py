"""A shell beside work that Slurm runs, or a way to a port of it: a step of the same job, by `srun --overlap`, which enters the work's own directory and environment. Slurm confines it as it confines
the job, carries the terminal, and ends it with the job.
"""

import asyncio
import contextlib
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import msgspec

from headframe.engines.carry import Shell
from headframe.engines.runtime import CGROUPFS, LOGIN
from headframe.engines.shell import open_shell
from headframe.engines.slurm.directory import owner_of
from headframe.engines.slurm.topology import env
from headframe.model.engine import EngineSetup
from headframe.model.errors import Conflicting
from headframe.model.shell import ShellAsk

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


RELAY = Path(__file__).with_name("relay.py").read_text()
REACH_S = 20.0
"""A step starts in a fraction of a second, where Slurm answers."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a step is to run: as the work's own account, on the machine of its first rank, whose directory that is; in `container` where the work is in one."""

    account: str
    job: int
    node: str
    rank: Path
    container: str


def open_step(setup: EngineSetup, place: Place, ask: ShellAsk) -> Shell:
    """Start it. Raises Conflicting where this server can't, or OSError."""
    inner = ["podman", CGROUPFS, "exec", "--interactive", *(["--tty"] if ask.rows else []), place.container] if place.container else []
    argv = [*inner, *(ask.argv or ("/bin/sh", "-c", LOGIN))]
    command = [
        *_step(place, "--pty" if ask.rows else "--unbuffered"),
        setup.python,
        "-I",
        "-S",
        "-c",
        ENTER,
        str(place.rank / "spec.json"),
        ask.term,
        *argv,
    ]
    return open_shell(ask, command, env(), "/", (), gently=True)


async def reach_step(setup: EngineSetup, place: Place, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a port at which the work listens, through a step of its job. Raises Conflicting where there is none, with the reason."""
    if place.container:
        raise Conflicting(
            "ports of a container on Slurm can't be forwarded: its network is its own", "run the server without an image, or `exec` a client inside"
        )
    command = [*_step(place, "--unbuffered"), setup.python, "-I", "-S", "-c", RELAY, str(port)]
    running = await asyncio.create_subprocess_exec(*command, env=env(), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True)
    assert running.stdin is not None
    assert running.stdout is not None
    said = ""
    try:
        async with asyncio.timeout(REACH_S):
            said = (await running.stdout.readline()).decode(errors="replace").strip()
    except TimeoutError:
        said = f"Slurm did not start the step in {REACH_S:.0f} s"
    finally:
        if said != "ok":
            with contextlib.suppress(ProcessLookupError):
                running.terminate()
    if said != "ok":
        raise Conflicting(said or "Slurm did not start the step", "does its server listen at 127.0.0.1, started by this very work?")
    return running.stdout, running.stdin


def _step(place: Place, how: str) -> list[str]:
    srun = shutil.which("srun")
    if srun is None:
        raise Conflicting("the server's machine has no srun", "install Slurm's client commands there (Debian: slurm-client)")
    where = [f"--jobid={place.job}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={place.node}"]
    return [*_become(place.account), srun, *where, "--mpi=none", "--quiet", "--export=PATH", how]


def _become(account: str) -> list[str]:
    """What runs the rest as that account: only root may become another. Slurm lets nobody but the job's own account into it."""
    try:
        owner = owner_of(account)
    except ValueError as no:
        raise Conflicting(str(no), "look at its log") from None
    return [] if owner is None else ["setpriv", f"--reuid={owner[0]}", f"--regid={owner[1]}", "--clear-groups", "--"]
