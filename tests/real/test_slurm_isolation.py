"""What a job on Slurm can't do to another project's: each is shown by a job that tries, on a real Slurm with cgroups and an account for each project."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pexpect
import pytest

from headframe.client import ApiError
from headframe.model.api import EngineBody, ServiceBody
from headframe.model.people import Scope
from headframe.model.states import Service
from isolated import Isolated, confines
from slurm import missing
from support import Server, image_tar, needs, wait_for

pytestmark = pytest.mark.slow
PYTHON = "/usr/bin/python3"  # the machine's own: the work's accounts have to reach it
FILE = """
name: {name}
run: |
  {run}
resources: {{gpu: {gpu}, cpu: 1, memory: {memory}MB, disk: 1MB}}
{more}
"""


class House:
    """Two projects on one machine."""

    def __init__(self, root):
        self.root = root
        self.slurm = Isolated(root / "c")

    def __enter__(self):
        self.slurm.__enter__()
        try:
            self._serve()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _serve(self):
        self.server = Server(self.root)
        self.server.inside = self.slurm.inside
        self.server.start("--no-check-new", SLURM_CONF=str(self.slurm.root / "slurm.conf"))
        self.operator = self.server.operator()
        self.mine, self.theirs = (self.server.tenant(name, credit_usd=1000) for name in ("mine", "theirs"))
        self.projects = {project.name: project.id for project in self.operator.projects().items}
        self.uids = {project.name: self.slurm.account(f"hf-{project.id}") for project in self.operator.projects().items}
        self.slurm.run("scontrol", "reconfigure")
        wait_for(self._added, 60)
        (here,) = (view.node.name for view in self.operator.nodes() if view.node.engine == "local")
        self.operator.move_node(here, ServiceBody(to=Service.DRAIN, why="all work is to be Slurm's"))
        wait_for(lambda: any(view.node.engine == "slurm" and view.node.state == "ready" for view in self.operator.nodes()), 60)

    def _added(self):
        """Whether Slurm is an engine now. Since 23.11 its machines are not there for a moment after `reconfigure`, as all daemons are started anew: then it is tried again."""
        try:
            self.operator.add_engine(
                EngineBody(url=self.slurm.url, key_file=str(self.slurm.key), shared=str(self.root / "shared"), python=PYTHON, accounts="hf-{project}")
            )
        except ApiError as refused:
            assert "none is up" in refused.problem.detail, refused
            return False
        return True

    def __exit__(self, *_):
        if getattr(self, "server", None) is not None and self.server.process and self.server.process.poll() is None:
            self.server.kill()
        self.slurm.__exit__()

    def starts(self, tenant, name, run, gpu=1, memory=100, more=""):
        tenant.submit(FILE.format(name=name, run="\n  ".join(run.splitlines()), gpu=gpu, memory=memory, more=more))
        wait_for(lambda: tenant.workload(name).workload.state not in {"queued", "starting"}, 60)

    def says(self, tenant, name):
        return [line.text for line in tenant.logs(name).lines if line.stream == "out"]

    def tries(self, tenant, name, run, **more):
        """What a job says that runs to its end."""
        self.starts(tenant, name, run, **more)
        wait_for(lambda: tenant.workload(name).workload.ended_ms, 60)
        return self.says(tenant, name)


@pytest.fixture(scope="module")
def house():
    if missing():
        assert os.environ.get("CI") != "true", f"not installed: {missing()}"
        pytest.skip(f"not installed: {missing()}")
    if not confines():
        pytest.skip("needs root and cgroup v1's controllers")
    root = Path(tempfile.mkdtemp(prefix="hf-house-"))
    root.chmod(0o755)
    with House(root) as made:
        made.starts(made.theirs, "victim", f"umask 000; echo secret >>$HEADFRAME_CHECKPOINT/kept; echo id $(id -un) card $CUDA_VISIBLE_DEVICES work $PWD; exec {PYTHON} -m http.server --bind 127.0.0.1 0", more="checkpoint: /ck")  # fmt: skip
        wait_for(lambda: made.says(made.theirs, "victim"))
        yield made
    shutil.rmtree(root, ignore_errors=True)


def python(code):
    """A program as one argument."""
    return f"{PYTHON} - <<'END'\n{code}\nEND"


def opens(*paths):
    return python(
        f"import os\nfor path in {list(map(str, paths))}:\n    try:\n        os.close(os.open(path, os.O_RDONLY)); print('opened')\n    except OSError as error:\n        print(error.strerror)"
    )


def test_a_job_can_open_its_own_card_and_no_other(house):
    cards = [house.slurm.root / "dev" / house.slurm.names[0] / f"nvidia{n}" for n in range(4)]
    said = house.tries(house.mine, "cards", f"echo $SLURM_JOB_GPUS\n{opens(*cards)}")
    mine, answers = int(said[0]), said[1:]
    assert answers[mine] == "No such device or address"  # it is allowed, and there is no driver behind it
    assert {answers[n] for n in range(4) if n != mine} == {"Operation not permitted"}


def test_a_job_that_takes_more_memory_than_it_asked_for_is_ended_alone_and_told_why(house):
    said = house.tries(house.mine, "greedy", f"echo begun; exec {PYTHON} -c 'kept = bytearray(400 << 20); print(len(kept))'", memory=100)
    assert said == ["begun"]
    row = house.mine.workload("greedy").workload
    assert (row.state, row.detail) == ("failed", "it used more memory than it asked for, ended by SIGKILL")
    assert house.theirs.workload("victim").workload.state == "running"


def test_a_job_can_not_read_or_change_what_another_project_has(house):
    victim = house.theirs.workload("victim")
    held = house.root / "shared" / "allocations" / victim.allocations[0].id
    work = next(line.split()[-1] for line in house.says(house.theirs, "victim") if line.startswith("id "))
    kept = house.root / "shared" / "checkpoints" / victim.workload.id
    assert (kept / "kept").read_text() == "secret\n"
    paths = [work, held, held / "0" / "spec.json", held / "0" / "log", kept, kept / "kept", house.server.data / "pepper", house.slurm.key]
    assert house.tries(house.mine, "reads", opens(*paths)) == ["Permission denied"] * len(paths)
    tried = house.tries(house.mine, "ends", f"touch {held}/stop.json {held}/0/stop.json 2>&1; ls {house.root}/shared/allocations 2>&1; true")
    assert all("Permission denied" in line for line in tried)
    assert len(tried) == 3
    assert house.theirs.workload("victim").workload.state == "running"


def test_a_job_can_not_see_or_signal_another_projects_processes(house):
    code = "import os\nseen = {os.stat(f'/proc/{pid}').st_uid for pid in os.listdir('/proc') if pid.isdigit()}\nprint(seen == {os.getuid()})"
    pids = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and owner(pid) not in {None, 0}]
    theirs = [pid for pid in pids if owner(pid) == house.uids["theirs"]]
    assert theirs
    tried = f"import os\nfor pid in {theirs}:\n    try:\n        os.kill(pid, 9)\n    except OSError as error:\n        print(error.strerror)"
    assert house.tries(house.mine, "looks", python(f"{code}\n{tried}")) == ["True", *["Operation not permitted"] * len(theirs)]


def owner(pid):
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def test_an_image_runs_as_its_projects_account_in_the_jobs_own_confines(house, tmp_path):
    """Without a network: where rootless podman can't make one here, its account's own settings say so, as an administrator's would."""
    needs("podman"), needs("newuidmap")
    uid = house.uids["mine"]
    tar = image_tar(tmp_path, "/bin/sh", "/bin/cat", "/bin/ls")
    held = next(path for path in (house.slurm.root / "home").iterdir() if path.stat().st_uid == uid)
    (held / ".config" / "containers").mkdir(parents=True)
    (held / ".config" / "containers" / "containers.conf").write_text('[containers]\nnetns = "none"\n')
    for path in (held / ".config", *(held / ".config").rglob("*")):
        os.chown(path, uid, uid)
    house.slurm.runs_as(uid, "podman", "import", str(tar), "localhost/headframe-test:1")
    said = house.tries(
        house.mine,
        "boxed",
        "echo in $PWD; ls /proc/1/root; cat /proc/net/tcp; cat /proc/self/uid_map; cat /proc/self/cgroup",
        gpu=0,
        memory=200,
        more="image: localhost/headframe-test:1",
    )
    assert said[0] == "in /work", house.mine.logs("boxed").lines
    assert [line.split() for line in said if str(uid) in line and len(line.split()) == 3] == [
        ["0", str(uid), "1"]
    ]  # its root is the project's account
    assert [line for line in said if "local_address" in line or ": 0100007F" in line] == [
        next(line for line in said if "local_address" in line)
    ]  # no port of others'
    confined = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in said if line.count(":") >= 2 and line[0].isdigit()}
    assert all(confined[name].startswith(f"/slurm_{house.slurm.names[0]}/uid_{uid}/job_") for name in ("memory", "devices"))


def test_a_shell_in_it_is_its_own_accounts_and_within_the_jobs_confines(house):
    house.starts(house.mine, "open", "echo up; sleep 600")
    wait_for(lambda: house.says(house.mine, "open"))
    env = {**os.environ, "HEADFRAME_CONFIG": str(house.root / "mine.json")}
    key = house.operator.create_key("shell", Scope.MEMBER, house.projects["mine"]).secret
    (house.root / "mine.json").write_text(json.dumps({"url": house.server.url, "key": key}))
    asked = [sys.executable, "-m", "headframe", "exec", "open", "--", "sh", "-c", "id -u; cat /proc/self/cgroup; pwd"]
    done = subprocess.run(asked, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = done.stdout.split("\n")
    assert said[0] == str(house.uids["mine"])
    assert any(
        line.split(":", 2)[2].startswith(f"/slurm_{house.slurm.names[0]}/uid_{house.uids['mine']}/job_") for line in said if ":memory:" in line
    )
    assert "/allocations/" in done.stdout
    shell = pexpect.spawn(sys.executable, ["-m", "headframe", "ssh", "open"], env=env, timeout=60, encoding="utf-8")
    shell.sendline("echo I am $(id -u) on $(tty)")
    shell.expect(rf"I am {house.uids['mine']} on /dev/pts/\d+")
    shell.sendline("exit 3")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 3
    house.mine.stop("open")
