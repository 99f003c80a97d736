"""Worlds and servers for tests: built with defaults, so that each test shows only what matters."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from components import find
from headframe import Client
from headframe.client.agent import AgentClient
from headframe.model.agent import AddBody, Hello, Joined
from headframe.model.command import CreateProject, Found, GrantCredit
from headframe.model.event import Event
from headframe.model.fleet import Gpu, Node, Rack
from headframe.model.ids import AllocationId, GpuId, KeyId, NodeId, ProjectId, RackId, SiteId, UserId, WorkloadId
from headframe.model.people import Key, Project, Scope
from headframe.model.states import AllocationState, GpuState, NodeState, WorkloadState
from headframe.model.units import NANO_PER_USD
from headframe.model.work import Allocation, GpuRequest, Part, Resources, Share, Spec, Tier, Workload
from headframe.model.world import World
from headframe.server.decide import RACK, SITE, decide

PROJECT = ProjectId("pr-test")
NOW_MS = 1_750_000_000_000
HOUR = 3_600_000


def node(n: int, **changes) -> Node:
    base = dict(
        id=NodeId(f"node-{n}"),
        name=f"rig-{n}",
        site_id=SITE,
        rack_id=RACK,
        state=NodeState.READY,
        engine="simulated",
        cpu_milli=32_000,
        memory_mib=65_536,
        disk_mib=1_000_000,
        joined_ms=0,
        seen_ms=0,
    )
    return Node(**{**base, **changes})


def gpu(n: int, k: int, model: str = "RTX 3090", memory_mib: int = 24_576, **changes) -> Gpu:
    base = dict(id=GpuId(f"GPU-{n}-{k}"), node_id=NodeId(f"node-{n}"), index=k, state=GpuState.READY, joined_ms=0)
    return Gpu(model=model, memory_mib=memory_mib, **{**base, **changes})


def key(scope: Scope = Scope.OPERATOR) -> Key:
    return Key(id=KeyId("op"), name="op", scope=scope, project_id=ProjectId(""), user_id=UserId(""), mac="", created_ms=0)


def fleet(nodes: int = 2, gpus_each: int = 8, queue: list[Workload] | None = None, credit_usd: int = 1000, model: str = "RTX 3090") -> World:
    """A founded world with one funded project; `queue` waits."""
    world = World()
    for command in (
        Found(site_name="here", key=key()),
        CreateProject(id=PROJECT, name="acme"),
        GrantCredit(project_id=PROJECT, amount_nano=credit_usd * NANO_PER_USD, memo="", id="1"),
    ):
        commit(world, decide(world, command, NOW_MS))
    for n in range(nodes):
        world.put(node(n))
        for k in range(gpus_each):
            world.put(gpu(n, k, model))
    for workload in queue or []:
        world.put(workload)
    return world


def commit(world: World, drafts) -> list[Event]:
    events = []
    for draft in drafts:
        event = Event(
            seq=world.version + 1, at_ms=NOW_MS, kind=draft.kind, subject=draft.subject, project_id=draft.project_id, text=draft.text, rows=draft.rows
        )
        world.apply(event)
        events.append(event)
    return events


def spec(gpus: float = 0, nodes: int = 1, name: str = "job", model: str = "", cpu: float = 1, memory_mib: int = 1024, **more) -> Spec:
    asked = {key: more.pop(key) for key in list(more) if key in GpuRequest.__struct_fields__}
    host = {key: more.pop(key) for key in list(more) if key in Resources.__struct_fields__}
    request = GpuRequest(milli=round(gpus * 1000), model=model, **asked)
    resources = Resources(gpu=request, cpu_milli=round(cpu * 1000), memory_mib=memory_mib, **host)
    return Spec(name=name, nodes=nodes, resources=resources, **{"run": "true", **more})


def job(n: int = 1, priority: int = 0, tier: Tier = Tier.ON_DEMAND, **more) -> Workload:
    name = f"job-{n}"
    return Workload(
        id=WorkloadId(f"wl-{n}"),
        project_id=PROJECT,
        key_id=KeyId("op"),
        name=name,
        state=WorkloadState.QUEUED,
        submitted_ms=NOW_MS + n,
        queued_ms=NOW_MS + n,
        held_nano=100 * NANO_PER_USD,
        spec=spec(name=name, priority=priority, tier=tier, **more),
    )


def elastic(n, least, most, **more):
    """A gang in the queue, of machines with two cards each."""
    made = job(n, nodes=most, gpus=2, **more)
    return msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, nodes_min=least))


def running(n, nodes, gpus, started_ms=NOW_MS, tier=Tier.ON_DEMAND, **more):
    """An allocation and its workload, on whole cards of the given nodes from card `first` on."""
    first = more.pop("first", 0)
    workload = msgspec.structs.replace(job(n, gpus=gpus, nodes=len(nodes), tier=tier, **more), state=WorkloadState.RUNNING, attempt=1)
    parts = tuple(
        Part(
            rank=rank,
            node_id=f"node-{k}",
            cpu_milli=1000,
            memory_mib=1024,
            disk_mib=1024,
            shares=tuple(Share(gpu_id=f"GPU-{k}-{i}", index=i, model="RTX 3090", milli=1000) for i in range(first, first + gpus)),
        )
        for rank, k in enumerate(nodes)
    )
    allocation = Allocation(
        id=AllocationId(f"wl-{n}.1"),
        workload_id=workload.id,
        project_id=workload.project_id,
        attempt=1,
        tier=tier,
        parts=parts,
        state=AllocationState.RUNNING,
        granted_ms=started_ms,
        started_ms=started_ms,
    )
    return workload, allocation


def put(world, *pairs):
    for pair in pairs:
        for row in pair:
            world.put(row)
    return world


def racked(nodes, per_rack, queue):
    """Nodes of one card each, `per_rack` to a rack."""
    world = fleet(nodes=nodes, gpus_each=1, queue=queue)
    for n in range(nodes):
        rack = RackId(f"rack-{n // per_rack}")
        world.put(Rack(id=rack, site_id=SiteId("site"), name=rack, created_ms=0))
        world.put(node(n, rack_id=rack))
    return world


def project(world: World) -> Project:
    return world.projects[PROJECT]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A real `headframe up` in its own process, to be killed and started again."""

    def __init__(self, root: Path, database: str = "", data: str = "data", port: int | None = None) -> None:
        self.root = root
        self.database = database
        self.data = root / data
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.inside: list[str] = []
        """What enters the namespace that it is to run in."""

    @property
    def log(self) -> str:
        return (self.root / f"server-{self.port}.log").read_text()

    def start(self, *arguments: str, wait: bool = True, **environment: str) -> "Server":
        env = {**os.environ, "HEADFRAME_CONFIG": str(self.root / "config.json"), **environment}
        argv = [*self.inside, sys.executable, "-m", "headframe", "up", "--data", str(self.data), "--port", str(self.port), *arguments]
        argv += [] if "--gateway-port" in arguments else ["--no-gateway"]
        argv += ["--database", self.database, "--pepper", str(self.root / "pepper")] if self.database else []
        with (self.root / f"server-{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
        if wait:
            self.wait_until_up()
        return self

    def wait_until_up(self, limit_s: float = 30) -> float:
        began = time.monotonic()
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                break
            assert self.process is None or self.process.poll() is None, self.log
            assert time.monotonic() - began < limit_s, self.log
            time.sleep(0.02)
        return time.monotonic() - began

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=20)

    def operator(self) -> Client:
        text = (self.root / "config.json").read_text()
        return Client(self.url, re.search(r'"key": "([^"]+)"', text)[1])

    def tenant(self, name: str = "acme", credit_usd: int = 1000, scope: Scope = Scope.ADMIN) -> Client:
        """A client of a new, funded project, once the machine is ready."""
        with self.operator() as operator:
            wait_for(lambda: any(view.node.state == "ready" for view in operator.nodes()))
            made = operator.create_project(name)
            operator.grant_credit(made.id, credit_usd * NANO_PER_USD)
            return Client(self.url, operator.create_key(name, scope, made.id).secret)


def hello(number: int = 1, gpus: int = 0, **changes) -> Hello:
    """What a machine would say that has this serial."""
    row = node(0, id=NodeId(f"node-{number:012x}"), name=f"joined-{number}", state=NodeState.NEW, **changes)
    return Hello(node=row, gpus=tuple(gpu(number, k, node_id=row.id) for k in range(gpus)))


def join(server: "Server", operator: Client, number: int = 1, gpus: int = 0) -> tuple[AgentClient, Joined]:
    """A machine that has joined, as a client with its key and what it was told."""
    with AgentClient(server.url, operator.invite(AddBody()).token) as stranger:
        joined = stranger.join(hello(number, gpus))
    return AgentClient(server.url, joined.key), joined


class Rig:
    """A real `headframe agent` in a process of its own, for a server beside it; with `nvml`, its cards are those of that stand-in."""

    def __init__(self, root: Path, server: Server) -> None:
        self.root = root
        self.data = root / "agent"
        self.server = server
        self.process: subprocess.Popen[bytes] | None = None
        root.mkdir(exist_ok=True)

    @property
    def log(self) -> str:
        return (self.root / "agent.log").read_text()

    def join(self, name: str = "rig-1", **environment: str) -> "Rig":
        with self.server.operator() as operator:
            token = operator.invite(AddBody(rack="shed")).token
        return self._spawn("join", self.server.url, token, "--name", name, "--new-identity", **environment)

    def run(self, **environment: str) -> "Rig":
        return self._spawn("run", **environment)

    def _spawn(self, *arguments: str, **environment: str) -> "Rig":
        env = {**os.environ, "HEADFRAME_CONFIG": str(self.root / "none.json"), **environment}
        argv = [sys.executable, "-m", "headframe", "agent", *arguments, "--data", str(self.data), "--watch-interval", "0.2"]
        with (self.root / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
        return self

    def kill(self, number: int = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(timeout=20)


def wait_for(true, limit_s: float = 30, every_s: float = 0.05):
    """Until `true()` is; the last value."""
    deadline = time.monotonic() + limit_s
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(every_s)
    return value


def needs(program: str) -> str:
    """The program's path; skips the test where it is missing, fails in CI."""
    found = find(program)
    if found is None:
        assert os.environ.get("CI") != "true", f"{program} should have been installed: see tests/components.py"
        pytest.skip(f"{program} is not installed here")
    return found


class Postgres:
    """A real PostgreSQL of the test's own, on a port of its own."""

    def __init__(self, root: Path) -> None:
        self.bin = Path(needs("initdb")).parent
        self.root = root
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.user = "nobody" if os.geteuid() == 0 else ""
        self.url = f"postgresql+psycopg://headframe@127.0.0.1:{self.port}/postgres"
        if self.user:
            for path in (root, *root.parents[:3]):
                with contextlib.suppress(PermissionError):
                    path.chmod(path.stat().st_mode | 0o011)
            shell = subprocess.run(["chown", self.user, str(root)], check=True)
            assert shell.returncode == 0
        self._run(str(self.bin / "initdb"), "-D", str(root / "db"), "-U", "headframe", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C")

    def _as_user(self, *argv: str) -> list[str]:
        return ["setpriv", f"--reuid={self.user}", "--regid=nogroup", "--clear-groups", *argv] if self.user else list(argv)

    def _run(self, *argv: str) -> None:
        done = subprocess.run(self._as_user(*argv), capture_output=True, text=True, cwd="/", env={**os.environ, "LC_ALL": "C"})
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> "Postgres":
        wait_for(self._started, limit_s=60, every_s=0.1)
        return self

    def _started(self) -> bool:
        """Started and answering; started again if it gave up because children of a killed one were not gone yet."""
        if self.process is None or self.process.poll() is not None:
            self._spawn()
        return self._answers()

    def _spawn(self) -> None:
        (self.root / "db" / "postmaster.pid").unlink(missing_ok=True)
        argv = [
            str(self.bin / "postgres"),
            "-D",
            str(self.root / "db"),
            "-p",
            str(self.port),
            "-k",
            str(self.root),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "shared_buffers=32MB",
        ]
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(self._as_user(*argv), stdout=log, stderr=log, cwd="/", env={**os.environ, "LC_ALL": "C"})

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """kill -9 of the postmaster; its children notice and leave."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=20)


def compiler() -> str:
    """A C compiler, for stand-ins of drivers' libraries."""
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        assert os.environ.get("CI") != "true", "no C compiler to make a driver's stand-in with"
        pytest.skip("no C compiler to make a driver's stand-in with")
    return found


def fake_nvml(root: Path, *flags: str) -> Path:
    """NVML's stand-in, compiled under `root`; the world it tells of is the file named by FAKE_NVML_STATE."""
    library = root / ("nvml" + "".join(flags)) / "libnvidia-ml.so.1"
    library.parent.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent / "fake_nvml.c"
    command = [compiler(), "-shared", "-fPIC", "-w", "-Wl,-soname,libnvidia-ml.so.1", *flags, "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return library


def fake_cuda(root: Path) -> Path:
    """NVML's and CUDA's stand-ins, side by side; the latter writes to FAKE_CUDA_LOG what it was told."""
    library = fake_nvml(root).parent / "libcuda.so.1"
    subprocess.run([compiler(), "-shared", "-fPIC", "-w", "-o", str(library), str(Path(__file__).parent / "fake_cuda.c")], check=True)
    return library


def image_tar(root: Path, *programs: str) -> Path:
    """What an image needs that runs these programs of this machine's."""
    for path in programs:
        libraries = subprocess.run(["ldd", path], capture_output=True, text=True).stdout.split()
        for file in {path, *(word for word in libraries if word.startswith("/"))}:
            target = root / "image" / file.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-L", file, str(target)], check=True)
    tar = root / "image.tar"
    subprocess.run(["tar", "-C", str(root / "image"), "-cf", str(tar), "."], check=True)
    for path in (tar, *(parent for parent in tar.parents if parent.is_relative_to("/tmp") and parent != Path("/tmp"))):
        path.chmod(path.stat().st_mode | (0o044 if path == tar else 0o011))
    return tar
