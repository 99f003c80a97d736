"""How an allocation's work is started: as a process with an environment of its own, or in a podman container."""

import os
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from headframe.model.fleet import Sharing
from headframe.model.units import MILLI
from headframe.model.work import Allocation, Mount, Part, Tier, Workload

PODMAN_STOP_S = 10
SETUP_EXIT = 113
"""In a container setup and run share one shell; this exit code tells a failed setup from a failed run."""
WORK_IN_CONTAINER = "/work"
PLAIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LOOPBACK = "127.0.0.1"
LOGIN = "if [ -x /bin/bash ]; then exec /bin/bash -i; else exec /bin/sh -i; fi"
"""What a person gets who asks for a shell."""
NOFILE_MAX, NPROC_MAX = 65_536, 32_768


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's place in a gang: what it holds, where rank 0 listens, and on this machine which cards it may see (None: it is another machine,
    where the engine beneath has bound it to some).
    """

    part: Part
    ranks: int = 1
    master: str = "127.0.0.1"
    port: int = 29_500
    cards: Sequence[str] | None = ()


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What the keeper runs: argument vectors and the whole environment, nothing inherited."""

    setup: list[str]
    run: list[str]
    env: dict[str, str]
    on_stop: list[list[str]] = []


def here(allocation: Allocation) -> Place:
    """The place of an allocation of this machine's own."""
    part = allocation.parts[0]
    return Place(part=part, ranks=len(allocation.parts), cards=[share.gpu_id for share in part.shares])


def launch_for(place: Place, allocation: Allocation, workload: Workload, work: Path, checkpoint: Path, mounts: Mapping[Mount, Path]) -> Launch:
    """A container where an image is named, else a process; ValueError says what is missing."""
    env = _headframe_env(place, allocation, workload)
    if workload.spec.image:
        return _podman(place, allocation, workload, _volumes(work, checkpoint, workload, mounts), {**env, **_seen(mounts, inside=True)})
    env |= _seen(mounts, inside=False)
    if workload.spec.checkpoint:
        env["HEADFRAME_CHECKPOINT"] = str(checkpoint)
    path = os.environ.get("PATH", PLAIN_PATH) if place.cards is not None else PLAIN_PATH
    base = {"PATH": path, "HOME": str(work), "LANG": "C.UTF-8", "TMPDIR": "/tmp", "PYTHONUNBUFFERED": "1"}  # noqa: S108
    if workload.spec.tier is Tier.HOUSE:  # our own program: it needs the libraries that this one found, and none of its secrets
        base = {**{key: value for key, value in os.environ.items() if not key.startswith("HEADFRAME_")}, **base, "HEADFRAME_PYTHON": sys.executable}
    shell = ["/bin/sh", "-c"]
    setup = [*shell, workload.spec.setup] if workload.spec.setup else []
    return Launch(setup=setup, run=[*shell, workload.spec.run], env={**base, **env, **workload.spec.env})


def bound(cards: Sequence[str]) -> dict[str, str]:
    """The cards that a process may see, by what they are known by: in the words of NVIDIA's libraries, and of AMD's, which heed both."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(cards), "ROCR_VISIBLE_DEVICES": ",".join(cards)}


def podman_path() -> str | None:
    """Where podman is, if it is installed."""
    return shutil.which("podman")


def _ulimits() -> list[str]:
    """Open files and threads, never above this process's own limits: podman's defaults ask for more than a server that is
    not the machine's own root may set.
    """
    wanted = {"nofile": (resource.RLIMIT_NOFILE, NOFILE_MAX), "nproc": (resource.RLIMIT_NPROC, NPROC_MAX)}
    limits = {name: min(resource.getrlimit(kind)[1] % 2**63, most) for name, (kind, most) in wanted.items()}
    return [f"--ulimit={name}={limit}:{limit}" for name, limit in limits.items()]


def _oci_runtime() -> list[str]:
    """crun, podman's own choice; but it refuses the hybrid cgroup v1 layout, where runc is needed."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return ["--runtime=runc"] if not unified and shutil.which("runc") else []


def _headframe_env(place: Place, allocation: Allocation, workload: Workload) -> dict[str, str]:
    part = place.part
    return {
        "HEADFRAME_WORKLOAD": workload.id, "HEADFRAME_NAME": workload.name, "HEADFRAME_ALLOCATION": allocation.id,
        "HEADFRAME_ATTEMPT": str(allocation.attempt), "HEADFRAME_NODES": str(place.ranks),
        "HEADFRAME_NODE_RANK": str(part.rank), "HEADFRAME_GPUS_PER_NODE": str(len(part.shares)),
        "HEADFRAME_CPUS": f"{part.cpu_milli / MILLI:g}", "HEADFRAME_MEMORY_MIB": str(part.memory_mib),
        "HEADFRAME_MASTER_ADDR": place.master, "HEADFRAME_MASTER_PORT": str(place.port),
        **({} if place.cards is None else bound(place.cards)),
        **_listens(part, workload),
        **_sharing(part),
        "OMP_NUM_THREADS": str(max(1, part.cpu_milli // MILLI)),
    }  # fmt: skip


def _listens(part: Part, workload: Workload) -> dict[str, str]:
    """Where a server is to listen: a container has an address of its own, whose port is published."""
    serve = workload.spec.serve
    if serve is None:
        return {}
    host, port = ("0.0.0.0", serve.port) if workload.spec.image else (part.host or LOOPBACK, part.port)  # noqa: S104 - inside the container
    return {"HEADFRAME_HOST": host, "HEADFRAME_PORT": str(port), "HOST": host, "PORT": str(port)}


def _sharing(part: Part) -> dict[str, str]:
    """How a fraction of a card is kept apart, and under MPS the share of the processors that it may use."""
    shared = next((share for share in part.shares if share.sharing is not Sharing.EXCLUSIVE), None)
    if shared is None:
        return {}
    told = {"HEADFRAME_GPU_SHARING": shared.sharing.value}
    return {**told, "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": f"{shared.milli / 10:g}"} if shared.sharing is Sharing.MPS else told


def _volumes(work: Path, checkpoint: Path, workload: Workload, mounts: Mapping[Mount, Path]) -> list[str]:
    """Directories of the machine and where the container sees them."""
    seen = {WORK_IN_CONTAINER: work, **{mount.path: path for mount, path in mounts.items()}}
    if workload.spec.checkpoint:
        seen[workload.spec.checkpoint] = checkpoint
    return [f"--volume={path}:{inside}:rw" for inside, path in seen.items()]


def _seen(mounts: Mapping[Mount, Path], *, inside: bool) -> dict[str, str]:
    """Where the work finds its volumes: without an image they are not where the file says, since nothing is mounted."""
    return {"HEADFRAME_VOLUME_" + mount.volume.upper().replace("-", "_"): mount.path if inside else str(path) for mount, path in mounts.items()}


CGROUPFS = "--cgroup-manager=cgroupfs"
"""podman's other way is systemd's, which is not there without a login, as podman says in four lines each time, and not within what the engine beneath confines."""
_ITS_HOME = 'HOME=$(getent passwd "$(id -u)" | cut -d: -f6); export HOME; '
_THERE = (
    _ITS_HOME + 'for card in $(echo "$CUDA_VISIBLE_DEVICES" | tr , " "); do set -- "--device=nvidia.com/gpu=$card" "$@"; done; '
    "if [ -e /sys/fs/cgroup/cgroup.controllers ]; then exec podman "
    + CGROUPFS
    + ' run --cgroups=disabled "$@"; else exec podman --runtime=runc run "$@"; fi'
)
"""podman on another machine: as the account that the work has there, with the cards that the engine beneath has bound this process to, and in the cgroup in which that engine
confines it. (Where only cgroup v1 is, an account that is not root can't leave it; for the runtime see `_oci_runtime`.)
"""
_STOPPED_THERE = _ITS_HOME + f'exec podman {CGROUPFS} stop "$@"'


def _podman(place: Place, allocation: Allocation, workload: Workload, volumes: list[str], env: dict[str, str]) -> Launch:
    part, name = place.part, f"headframe-{allocation.id}" + (f"-{place.part.rank}" if place.ranks > 1 else "")
    argv = [
        "--rm", "--replace", f"--name={name}", "--security-opt=no-new-privileges", "--cap-drop=all", *volumes,
        f"--workdir={WORK_IN_CONTAINER}", f"--stop-timeout={PODMAN_STOP_S}", "--log-driver=none",
    ]  # fmt: skip
    if workload.spec.checkpoint:
        env["HEADFRAME_CHECKPOINT"] = workload.spec.checkpoint
    if workload.spec.serve is not None:
        argv.append(f"--publish={part.host or LOOPBACK}:{part.port}:{workload.spec.serve.port}")
    argv += ["--network=host"] if place.ranks > 1 else []  # ranks find each other by their machines' addresses
    argv += [f"--env={key}={value}" for key, value in {**env, **workload.spec.env}.items()]
    setup = f"( {workload.spec.setup}\n) || exit {SETUP_EXIT}; " if workload.spec.setup else ""
    inner, stop = [workload.spec.image, "/bin/sh", "-c", setup + workload.spec.run], [f"--time={PODMAN_STOP_S}", name]
    if place.cards is None:
        run = ["/bin/sh", "-c", _THERE, "sh", *argv, *inner]
        return Launch(setup=[], run=run, env={"PATH": PLAIN_PATH, "LANG": "C.UTF-8"}, on_stop=[["/bin/sh", "-c", _STOPPED_THERE, "sh", *stop]])
    podman = podman_path()
    if podman is None:
        raise ValueError("an image is named, but podman is not installed on this machine")
    argv += [
        *_ulimits(),
        f"--cpus={part.cpu_milli / MILLI:g}",
        f"--memory={part.memory_mib}m",
        *(f"--device=nvidia.com/gpu={card}" for card in place.cards),
    ]
    outer = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": os.environ.get("HOME", "/root"), "LANG": "C.UTF-8"}
    outer |= {key: os.environ[key] for key in ("XDG_RUNTIME_DIR", "CONTAINERS_STORAGE_CONF", "CONTAINERS_CONF") if key in os.environ}
    return Launch(setup=[], run=[podman, *_oci_runtime(), "run", *argv, *inner], env=outer, on_stop=[[podman, "stop", *stop]])
