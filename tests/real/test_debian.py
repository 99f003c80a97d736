"""`cluster init` and all that follows as an operator does it, as root, on three virtual machines with Debian 12, systemd, cgroup v2, NFS and quotas: `make debian` (root; half an hour without
hardware help). What the fixtures on one machine show, they show more quickly; this is what only real machines can.
"""

import json
import os
import subprocess
import sys
import time

import pytest

from debian import PROJECT, Debian, missing
from headframe.client import ApiError, Client, Unreachable
from headframe.model.api import EngineBody
from headframe.model.people import Scope
from headframe.model.units import NANO_PER_USD
from slurm import free_ports
from support import wait_for

ROOT = os.environ.get("HEADFRAME_DEBIAN", "")
pytestmark = [pytest.mark.skipif(not ROOT, reason="opt-in: make debian"), pytest.mark.timeout(1800)]
HEADFRAME = f"PYTHONDONTWRITEBYTECODE=1 HOME=/root {sys.executable} -m headframe"
SHARED = "/srv/headframe"
CARDS = """mkdir -p /var/cards
for k in 0 1; do
  mkdir -p /var/cards/0000:0$k:00.0; printf 'Model: \\t\\t NVIDIA GeForce RTX 3090\\nDevice Minor: \\t %d\\n' $k >/var/cards/0000:0$k:00.0/information
  mknod /dev/nvidia$k c 195 $k; chmod 666 /dev/nvidia$k
done
mkdir -p /etc/cdi
echo '{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[{"name":"0","containerEdits":{"deviceNodes":[{"path":"/dev/nvidia0"}]}},{"name":"1","containerEdits":{"deviceNodes":[{"path":"/dev/nvidia1"}]}}]}' >/etc/cdi/nvidia.json
"""
IMAGE = "cd /tmp; mkdir -p i/bin i/tmp; cp /bin/busybox i/bin; for a in sh ls cat id dd mount sleep; do ln -s busybox i/bin/$a; done; tar cf /srv/headframe/image.tar -C i .; chmod 644 /srv/headframe/image.tar"


class Farm:
    """A controller, two machines of two cards, a server, one project with an account of its own."""

    def __init__(self, machines):
        self.machines = machines
        assert str(PROJECT) in sys.prefix, "its Python has to be the project's own .venv"

    def make(self):
        run = self.machines.run
        run(
            "ctl",
            "mkdir -p /export/headframe; mount -o usrquota /dev/vdb /export/headframe; echo '/export/headframe 10.77.0.0/24(rw,no_root_squash,no_subtree_check)' >/etc/exports; systemctl restart nfs-server; exportfs -ra",
        )
        run("ctl", f"{HEADFRAME} cluster init --address 10.77.0.10")
        self.join = run("ctl", "cat /etc/slurm/join.sh").stdout
        for name in ("ctl", "n1", "n2"):
            run(name, f"mkdir -p {SHARED}; mount -t nfs4 ctl:/export/headframe {SHARED}")
        for name in ("n1", "n2"):
            run(name, self.join, "--rack B2")  # before its cards are there
            run(name, CARDS)
            run(name, self.join, "--rack B2 --cards /var/cards")
        run(
            "ctl",
            f"systemd-run --unit=headframe --setenv=PYTHONDONTWRITEBYTECODE=1 --setenv=HOME=/root {sys.executable} -m headframe up --data /var/lib/headframe",
        )
        (port,) = free_ports(1)
        self.tunnel = subprocess.Popen([*self.machines.ssh("ctl"), "-N", "-L", f"{port}:127.0.0.1:7070"])
        wait_for(lambda: "leading" in run("ctl", "journalctl -u headframe", check=False).stdout, 600, 3)
        url, key = f"http://127.0.0.1:{port}", json.loads(run("ctl", "cat ~/.config/headframe/config.json").stdout)["key"]
        self.operator = Client(url, key)
        wait_for(self._answers, 300, 2)
        self.added = self.operator.add_engine(
            EngineBody(url="unix:/run/slurmrestd/slurmrestd.socket", key_file="/etc/slurm/jwt_hs256.key", shared=SHARED, accounts="hf-{project}")
        )
        project = self.operator.create_project("lab")
        self.operator.grant_credit(project.id, 100 * NANO_PER_USD)
        self.tenant, self.account = Client(url, self.operator.create_key("lab", Scope.ADMIN, project.id).secret), f"hf-{project.id}"
        for name in ("ctl", "n1", "n2"):
            run(name, f"useradd -m -u 3001 -s /bin/sh {self.account}")
        run("ctl", IMAGE)
        for name in ("n1", "n2"):
            run(
                name,
                f"cd /; setpriv --reuid=3001 --regid=3001 --clear-groups env HOME=/home/{self.account} podman --cgroup-manager=cgroupfs import -q {SHARED}/image.tar localhost/tool:1",
            )
        wait_for(lambda: sum(view.node.engine == "slurm" and view.node.state == "ready" for view in self.operator.nodes()) == 2, 120, 1)
        return self

    def _answers(self):
        try:
            return self.operator.nodes() is not None
        except (ApiError, Unreachable):
            return False

    def start(self, name, run, more=""):
        body = "\n  ".join(run.strip().splitlines())
        self.tenant.submit(f"name: {name}\nrun: |\n  {body}\nresources: {{gpu: 1, cpu: 1, memory: 200MB, disk: 10MB}}\n{more}")

    def ended(self, name, limit_s=240):
        wait_for(lambda: self.tenant.workload(name).workload.ended_ms, limit_s, 0.5)
        return self.tenant.workload(name).workload

    def says(self, name):
        return [line.text for line in self.tenant.logs(name).lines if line.stream == "out"]


@pytest.fixture(scope="module")
def farm():
    assert not missing(), f"not installed: {missing()}"
    with Debian(ROOT, os.environ.get("HEADFRAME_DEBIAN_SUITE", "bookworm")) as machines:
        made = Farm(machines)
        try:
            yield made.make()
        finally:
            if hasattr(made, "tunnel"):
                made.tunnel.kill()


def test_a_new_cluster_answers_and_a_machine_whose_cards_came_later_has_them(farm):
    assert farm.machines.run("ctl", "systemctl is-active munge slurmctld slurmrestd").stdout.split() == ["active"] * 3
    assert farm.machines.run("ctl", "sinfo -hNo '%N %G %f'").stdout.splitlines() == ["n1 gpu:rtx3090:2 rack=B2", "n2 gpu:rtx3090:2 rack=B2"]
    assert {each.what: each.verdict for each in farm.added.findings}.get("private /tmp", "good") == "good"
    assert all(each.verdict != "bad" for each in farm.added.findings), farm.added.findings


def test_a_job_has_its_own_card_memory_and_tmp(farm):
    tried = "python3 -c \"import os\nfor c in (0, 1):\n  try: os.open(f'/dev/nvidia{c}', os.O_RDWR)\n  except OSError as no: print(no.strerror)\""
    farm.start(
        "own", f"ls -A /tmp | wc -l; touch /tmp/mine; id -un; echo {'$CUDA_VISIBLE_DEVICES'}\n{tried}\npython3 -c 'print(len(bytearray(300 << 20)))'"
    )
    ended = farm.ended("own")
    assert ended.state == "failed"
    assert ended.detail.startswith("it used more memory than it asked for"), ended.detail
    empty, who, card, *opened = farm.says("own")
    assert (empty, who) == ("0", farm.account)
    assert sorted(opened) == ["No such device or address", "Operation not permitted"]
    assert opened[int(card)] == "No such device or address"  # its own, and there is no driver behind it


def test_an_image_runs_rootless_with_crun_in_its_jobs_cgroup_and_sees_its_own_card(farm):
    farm.start("boxed", "id -u; ls /dev/nvidia*; dd if=/dev/zero of=/dev/null bs=300M count=1 2>/dev/null || echo refused", "image: localhost/tool:1")
    ended = farm.ended("boxed")
    assert ended.state == "succeeded", (ended.detail, [line.text for line in farm.tenant.logs("boxed").lines])
    assert farm.says("boxed") in (["0", "/dev/nvidia0", "refused"], ["0", "/dev/nvidia1", "refused"])
    assert not [line.text for line in farm.tenant.logs("boxed").lines if "cgroupv2 manager" in line.text]


def test_over_nfs_a_line_and_a_stop_are_seen_within_seconds(farm):
    farm.start("seen", "sleep 5; echo said at $(date +%s); trap 'echo told; exit 0' TERM; while :; do sleep 0.2; done")
    wait_for(lambda: farm.says("seen"), 120, 0.2)
    assert time.time() - int(farm.says("seen")[0].split()[-1]) < 8
    began = time.monotonic()
    farm.tenant.stop("seen")
    assert farm.ended("seen").state == "cancelled"
    assert farm.says("seen")[-1] == "told"
    assert time.monotonic() - began < 15


def test_work_that_uses_up_its_projects_quota_ends_for_its_own_reason_and_so_does_what_comes_after(farm):
    farm.machines.run("ctl", f"setquota -u {farm.account} 20M 20M 0 0 /export/headframe")
    try:
        for name in ("fills", "full"):
            farm.start(name, "dd if=/dev/zero of=$HEADFRAME_CHECKPOINT/big bs=1M count=50; echo $?; exit 3", "checkpoint: /ck\nretry: {attempts: 3}")
            ended = farm.ended(name)
            assert (ended.state, ended.reason, ended.attempt) == ("failed", "failed", 1), ended
            assert "Disk quota exceeded" in ended.detail
    finally:
        farm.machines.run("ctl", f"setquota -u {farm.account} 0 0 0 0 /export/headframe")


def test_a_gang_that_loses_a_machines_power_goes_on_from_its_checkpoint(farm):
    run = """n=$(cat $HEADFRAME_CHECKPOINT/n 2>/dev/null || echo 0); echo rank $HEADFRAME_NODE_RANK of $HEADFRAME_NODES from $n
while [ $n -lt 400 ]; do n=$((n+1)); [ $HEADFRAME_NODE_RANK = 0 ] && echo $n >$HEADFRAME_CHECKPOINT/n; sleep 1; done"""
    farm.start("gang", run, "nodes: 1..2\ncheckpoint: /ck\nretry: {on: [node-lost], attempts: 3}")
    wait_for(lambda: sum("of 2" in line for line in farm.says("gang")) == 2, 120, 0.5)
    time.sleep(10)
    farm.machines.kill("n2")
    began = time.monotonic()
    wait_for(lambda: any("of 1" in line for line in farm.says("gang")), 180, 0.5)
    print(f"a gang whose machine lost its power runs again after {time.monotonic() - began:.0f} s")
    assert int(farm.says("gang")[0].split()[-1]) > 5
    farm.tenant.stop("gang")
    farm.ended("gang")
