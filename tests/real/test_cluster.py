"""`headframe cluster init`: a new Slurm cluster from nothing, whose machines join and leave while it runs; as the howto says, on real daemons below one directory."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from headframe.engines.slurm.cluster import interfaces, rest_unit
from headframe.model.api import EngineBody
from slurm import Slurm, free_ports, missing, which
from support import Server, fake_cuda, wait_for

pytestmark = pytest.mark.slow
if missing():
    if os.environ.get("CI"):
        pytest.fail(f"not installed: {', '.join(missing())}", pytrace=False)
    pytest.skip(f"not installed: {', '.join(missing())}", allow_module_level=True)


def headframe(*words):
    return subprocess.run([sys.executable, "-m", "headframe", *map(str, words)], capture_output=True, text=True, timeout=60)


class Made(Slurm):
    """The daemons of what `cluster init` wrote."""

    def __init__(self, root):
        super().__init__(root, nodes=0)
        self.key = self.root / "etc/slurm/jwt_hs256.key"

    def __enter__(self):
        for name in ("log", "rest", "sbin"):
            (self.root / name).mkdir(parents=True)
        self.root.chmod(0o755)
        for program in ("slurmctld", "slurmd", "slurmrestd"):
            (self.root / "sbin" / program).symlink_to(which(program))
        port, node_port = free_ports(2)
        done = headframe(
            "cluster", "init", "--prefix", self.root, "--name", "farm", "--address", "127.0.0.1", "--port", port, "--node-port", node_port
        )
        assert done.returncode == 0, done.stderr
        self.said = " ".join(done.stdout.split())
        (self.root / "slurm.conf").symlink_to("etc/slurm/slurm.conf")
        sock = self.root / "run/munge/munge.socket.2"
        sock.parent.mkdir(parents=True)
        self._spawn("munged", [
            which("munged"), "--foreground", "--force", f"--socket={sock}", f"--key-file={self.root}/etc/munge/munge.key", f"--pid-file={self.root}/munged.pid",
            f"--log-file={self.root}/log/munged.log", f"--seed-file={self.root}/munged.seed",
        ])  # fmt: skip
        self._until("munged", sock.exists)
        self.controller()
        self.rest()
        return self

    def cards(self, name, model, count):
        """What the driver would say of a machine's cards, and links to /dev/null for their device files."""
        folder = self.root / f"cards-{name}"
        for k in range(count):
            (folder / f"0000:0{k + 1}:00.0").mkdir(parents=True)
            (folder / f"0000:0{k + 1}:00.0" / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 1{k}\nDevice Minor: \t {k}\n")
            (folder / f"nvidia{k}").symlink_to("/dev/null")
        return folder

    def join(self, name, cards, *words):
        script = ["sh", f"{self.root}/etc/slurm/join.sh", "--name", name, "--cards", str(cards), "--dev", str(cards), *words]
        self._spawn(f"slurmd-{name}", script, {"PATH": f"{self.root}/sbin:{os.environ['PATH']}"})
        self._until(name, lambda: "idle" in self.run("sinfo", "-h", "-n", name, "-o", "%t", check=False))

    def leave(self, name):
        self._until(f"{name}'s jobs to be over", lambda: not self.run("squeue", "-h", "-w", name, check=False).split())
        self.kill(f"slurmd-{name}")
        if name in self.run("sinfo", "-h", "-N", "-o", "%N"):
            self.run("scontrol", "delete", f"NodeName={name}")


@pytest.fixture(scope="module")
def made():
    root = Path(tempfile.mkdtemp(prefix="hfc-"))
    with Made(root) as slurm:
        yield slurm
    shutil.rmtree(root, ignore_errors=True)


def test_a_cluster_made_from_nothing_runs_headframes_work_and_its_machines_come_and_go_without_a_restart(made, tmp_path):
    controller = made.processes["slurmctld"].pid
    made.join("n1", made.cards("n1", "NVIDIA GeForce RTX 3090", 2), "--rack", "B2")
    assert made.run("sinfo", "-h", "-n", "n1", "-o", "%G %f").split() == ["gpu:rtx3090:2", "rack=B2"]
    server = Server(tmp_path).start()
    try:
        with server.operator() as operator, server.tenant() as tenant:
            shared = made.root / "shared"
            me = made.run("id", "-un").strip()
            added = operator.add_engine(EngineBody(url=made.url, key_file=str(made.key), shared=str(shared), user=me, python=sys.executable))
            assert all(each.verdict != "bad" for each in added.findings), added.findings
            assert {each.what: each.verdict for each in added.findings}["hand-over"] == "good", added.findings
            wait_for(lambda: any(view.node.name == "n1" and view.node.state == "ready" for view in operator.nodes()), 60)
            assert {gpu.model for view in operator.nodes() if view.node.name == "n1" for gpu in view.gpus} == {"GeForce RTX 3090"}
            tenant.submit(
                "name: first\nrun: echo on $SLURMD_NODENAME with $CUDA_VISIBLE_DEVICES\nresources: {gpu: 'RTX3090:2', cpu: 1, memory: 100MB, disk: 1MB}"
            )
            wait_for(lambda: tenant.workload("first").workload.state == "succeeded", 60)
            assert [line.text for line in tenant.logs("first").lines if line.stream == "out"] == ["on n1 with 0,1"]
            made.leave("n1")
            made.join("n2", made.cards("n2", "NVIDIA A100-SXM4-80GB", 1))
            assert made.run("sinfo", "-h", "-N", "-o", "%N %G").split() == ["n2", "gpu:a100sxm480gb:1"]
            wait_for(lambda: any(view.node.name == "n2" and view.node.state == "ready" for view in operator.nodes()), 60)
            assert {gpu.model for view in operator.nodes() if view.node.name == "n2" for gpu in view.gpus} == {"A100 SXM4 80GB"}
            made.kill("slurmd-n2")
            made.join(
                "n2", made.cards("n2-more", "NVIDIA A100-SXM4-80GB", 3), "--rack", "B3"
            )  # a controller keeps what it was told first, unless it is told to forget
            wait_for(lambda: made.run("sinfo", "-h", "-N", "-o", "%N %G %f").split() == ["n2", "gpu:a100sxm480gb:3", "rack=B3"], 30)
            wait_for(lambda: len([gpu for view in operator.nodes() if view.node.name == "n2" for gpu in view.gpus]) == 3, 90)
    finally:
        server.kill()
    assert made.processes["slurmctld"].pid == controller
    assert made.processes["slurmctld"].poll() is None


def test_between_two_holders_slurms_epilog_overwrites_cards_and_drains_a_machine_on_which_somebody_is_left(made, tmp_path):
    library, state, log = fake_cuda(made.root / "cuda").parent, made.root / "cards", made.root / "cuda.log"
    state.write_text("-1.count 2\n*.name NVIDIA GeForce RTX 3090\n*.memory_mib 24576\n*.capability 8.6\n*.field230 0\n*.used_mib 300\n"
                     "0.uuid GPU-0\n1.uuid GPU-1\n0.bus 00000000:01:00.0\n1.bus 00000000:02:00.0\n")  # fmt: skip
    told = {
        "PATH": f"{Path(sys.executable).parent}:$PATH",
        "LD_LIBRARY_PATH": library,
        "FAKE_NVML_STATE": state,
        "FAKE_CUDA_LOG": log,
        "FAKE_CUDA_MIB": "16",
    }
    (made.root / "etc/slurm/headframe.env").write_text("".join(f"export {name}={value}\n" for name, value in told.items()))
    made.leave("n2")  # this machine has one address, and each dynamic node needs one
    made.join("n3", made.cards("n3", "NVIDIA GeForce RTX 3090", 2))
    try:
        made.run("srun", "-w", "n3", "--gres=gpu:2", "--mem=50", "true")
        wait_for(lambda: made.run("sinfo", "-h", "-n", "n3", "-o", "%t").split() == ["idle"], 60)
        calls = [line.split() for line in log.read_text().splitlines()]
        assert {line[0] for line in calls if len(line) == 1 or ":" in line[0]} >= {"00000000:01:00.0", "00000000:02:00.0"}
        assert sum(int(line[1]) for line in calls if line[0] == "zeroed") == 2 * 16 << 20
        with state.open("a") as file:
            file.write("1.processes 1\n")
        made.run("srun", "-w", "n3", "--gres=gpu:2", "--mem=50", "true")
        wait_for(lambda: "drain" in made.run("sinfo", "-h", "-n", "n3", "-o", "%T"), 60)
        assert "Epilog error" in made.run("sinfo", "-h", "-n", "n3", "-o", "%E")
    finally:
        made.leave("n3")
        (made.root / "etc/slurm/headframe.env").unlink()


def test_keys_are_secret_a_cluster_is_not_overwritten_and_what_is_printed_can_be_run(made):
    root = made.root / "etc"
    modes = {
        name: oct((root / name).stat().st_mode & 0o777) for name in ("munge/munge.key", "slurm/jwt_hs256.key", "slurm/join.sh", "slurm/slurm.conf")
    }
    assert modes == {"munge/munge.key": "0o400", "slurm/jwt_hs256.key": "0o600", "slurm/join.sh": "0o600", "slurm/slurm.conf": "0o644"}
    assert "engine add slurm" in made.said
    again = headframe("cluster", "init", "--prefix", made.root)
    assert again.returncode == 1
    assert "belongs to a cluster" in again.stderr


def test_a_new_cluster_has_no_slurmdbd_so_its_slurmrestd_is_given_what_works_without():
    debian_12 = "slurmrestd: Possible OpenAPI plugins:\nslurmrestd: openapi/dbv0.0.38\nslurmrestd: openapi/v0.0.37\nslurmrestd: openapi/v0.0.38\n"
    assert interfaces(debian_12) == ["openapi/v0.0.37", "openapi/v0.0.38"]
    assert interfaces("slurmrestd: openapi/slurmctld\nslurmrestd: openapi/slurmdbd\n") == ["openapi/slurmctld"]
    assert "-s openapi/v0.0.37,openapi/v0.0.38 unix:" in rest_unit(debian_12)
    assert " -s " not in rest_unit("")


@pytest.mark.parametrize("words", [("--name", "Bad Name"), ("--address", "a;b"), ("--nodes-max", "0")])
def test_what_can_not_be_is_refused_before_anything_is_written(tmp_path, words):
    assert headframe("cluster", "init", "--prefix", tmp_path / "x", *words).returncode == 2
    assert not (tmp_path / "x").exists()


def test_replacing_keeps_the_key_that_machines_have_and_the_script_refuses_what_it_does_not_know(tmp_path):
    assert headframe("cluster", "init", "--prefix", tmp_path).returncode == 0
    key = (tmp_path / "etc/munge/munge.key").read_bytes()
    assert headframe("cluster", "init", "--prefix", tmp_path, "--replace").returncode == 0
    assert (tmp_path / "etc/munge/munge.key").read_bytes() == key
    for words in (["--rack", "B 2; reboot"], ["--what", "1"], ["--rack"]):
        done = subprocess.run(["sh", str(tmp_path / "etc/slurm/join.sh"), *words], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert "join:" in done.stderr
