"""Shells and ports of running work, through the real command line: a terminal, its size, signals and exit codes; who may, what may be reached, and what ends when."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time

import httpx
import pexpect
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from headframe.model.api import ServiceBody
from headframe.model.people import Scope
from headframe.model.states import Service
from support import Rig, Server, free_port, wait_for

pytestmark = pytest.mark.slow
LAB = "type: workspace\nname: {name}\nresources: {{gpu: 0, cpu: 0.1, memory: 100MB, disk: 1MB}}\nvolumes: [home:/home]\nenv: {{HELLO: there}}\n{more}"


@pytest.fixture(scope="module", params=["here", "far"])
def lab(request, tmp_path_factory):
    made = Lab(tmp_path_factory.mktemp("lab"), far=request.param == "far")
    yield made
    if made.rig is not None:
        made.rig.kill(signal.SIGTERM)
    made.server.kill(signal.SIGTERM)


class Lab:
    """A workspace on the server's own machine, or on one that joined and is told everything by a line that it opens itself."""

    def __init__(self, root, *, far=False):
        self.server = Server(root).start()
        self.tenant = self.server.tenant("acme")
        self.rig = self.elsewhere(root) if far else None
        self.start("lab")

    def elsewhere(self, root):
        with self.server.operator() as operator:
            own = next(iter(operator.nodes())).node.name
            rig = Rig(root / "rig", self.server).join()
            wait_for(lambda: any(view.node.engine == "joined" and view.node.state == "ready" for view in operator.nodes()))
            operator.move_node(own, ServiceBody(to=Service.DRAIN))
            wait_for(lambda: any(view.node.name == own and view.node.state == "maintenance" for view in operator.nodes()))
        return rig

    def start(self, name, more=""):
        self.tenant.submit(LAB.format(name=name, more=more))
        wait_for(lambda: self.state(name) == "running")

    def state(self, name):
        return self.tenant.workload(name).workload.state

    @property
    def env(self):
        key = self.tenant._http.headers["Authorization"].removeprefix("Bearer ")
        return {**os.environ, "HEADFRAME_URL": self.server.url, "HEADFRAME_KEY": key, "TERM": "xterm"}

    def run(self, *words, **more):
        return subprocess.run([sys.executable, "-m", "headframe", *words], env=self.env, capture_output=True, text=True, timeout=60, **more)


def test_a_command_beside_the_work_has_its_environment_its_output_and_its_exit_code(lab):
    done = lab.run("exec", "lab", "--", "sh", "-c", 'echo "$HELLO $HEADFRAME_NAME"; pwd; echo oops >&2; exit 7')
    assert (done.returncode, done.stderr) == (7, "oops\n")
    assert done.stdout.splitlines()[0] == "there lab"
    assert done.stdout.splitlines()[1].endswith(".1/work")
    assert lab.run("exec", "lab", "cat", input="a\nb").stdout == "a\nb"
    assert lab.run("exec", "lab", "--", "sh", "-c", "kill -9 $$").returncode == 137
    refused = lab.run("exec", "lab", "no-such-program")
    assert (refused.returncode, "can't start no-such-program" in refused.stderr) == (127, True)
    words = ["two  words", "$HOME", "'\"", "ünïcode", "-x"]
    assert lab.run("exec", "lab", "--", "printf", "%s\\n", *words).stdout.splitlines() == words
    assert len(lab.run("exec", "lab", "--", "head", "-c", "3000000", "/dev/zero").stdout) == 3_000_000


def test_a_shell_has_a_terminal_a_size_and_signals(lab):
    shell = pexpect.spawn(sys.executable, ["-m", "headframe", "ssh", "lab"], env=lab.env, dimensions=(33, 101), timeout=20, encoding="utf-8")
    shell.sendline("PS1='> '; stty size; test -t 1 && echo a-ter''minal")
    shell.expect(r"33 101")
    shell.expect("a-terminal")
    shell.setwinsize(40, 120)
    shell.sendline("sleep 0.3; stty size")
    shell.expect(r"40 120")
    shell.sendline("sleep 100; echo not-re''ached")
    time.sleep(0.3)
    shell.sendcontrol("c")
    shell.sendline("echo still-h''ere $HELLO")
    shell.expect("still-here there")
    shell.sendline("exit 5")
    shell.expect(pexpect.EOF)
    shell.close()
    assert shell.exitstatus == 5
    assert lab.state("lab") == "running", "leaving a shell does not end the work"


def test_a_shell_that_is_left_ends_with_all_it_started(lab):
    shell = pexpect.spawn(sys.executable, ["-m", "headframe", "ssh", "lab"], env=lab.env, timeout=20, encoding="utf-8")
    shell.sendline("sleep 12345 & echo pid=$!; setsid sleep 12346 & wait")
    shell.expect(r"pid=(\d+)")
    pid = int(shell.match[1])
    shell.kill(signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 10)


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_that_a_shell_started_outlives_it(lab, terminal):
    words = ["exec", *(["--tty"] if terminal else []), "lab", "--", "sh", "-c", "(setsid sleep 12347 >/dev/null 2>&1 </dev/null & echo $!); exit 3"]
    done = lab.run(*words)
    assert done.returncode == 3
    pid = int(done.stdout.split()[0])
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 10)


def test_ports_at_which_the_work_listens_are_reached_and_no_others(lab):
    port, mine, elses = free_port(), free_port(), socket.create_server(("127.0.0.1", 0))
    server = subprocess.Popen([sys.executable, "-m", "headframe", "exec", "lab", "--", sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"], env=lab.env,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    forward = subprocess.Popen([sys.executable, "-m", "headframe", "forward", "lab", f"{mine}:{port}", f"0:{elses.getsockname()[1]}", f"0:{lab.server.port}"], env=lab.env,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    try:
        doors = [int(re.search(r":(\d+) →", forward.stderr.readline())[1]) for _ in range(3)]
        assert doors[0] == mine
        wait_for(lambda: _answers(mine), 20)
        assert "Directory listing" in httpx.get(f"http://127.0.0.1:{mine}/").text
        for door in doors[1:]:
            with pytest.raises(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{door}/", timeout=10)
            assert "nothing of this work listens" in forward.stderr.readline()
    finally:
        forward.send_signal(signal.SIGINT)
        server.send_signal(signal.SIGINT)
        assert forward.wait(20) == 0
        server.wait(20)


def test_a_real_jupyter_is_reached_and_runs_what_is_typed(lab):
    """Its pages by HTTP, its kernel by a WebSocket, both through `headframe forward`."""
    port, mine, token = free_port(), free_port(), secrets.token_hex(16)
    options = f"--ServerApp.port={port} --ServerApp.port_retries=0 --IdentityProvider.token={token} --ServerApp.allow_root=True --ServerApp.open_browser=False"
    run = f"HOME=$PWD exec {sys.executable} -m jupyter_server --ServerApp.ip=127.0.0.1 {options}"
    lab.tenant.submit(f"type: workspace\nname: notes\nrun: {run}\nresources: {{gpu: 0, cpu: 0.5, memory: 2GB, disk: 1MB}}\n")
    forward = subprocess.Popen([sys.executable, "-m", "headframe", "forward", "notes", f"{mine}:{port}"], env=lab.env, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _answers(mine, "/api"), 60, 0.3)
        assert httpx.get(f"http://127.0.0.1:{mine}/api/kernels").status_code == 403
        kernel = httpx.post(
            f"http://127.0.0.1:{mine}/api/kernels", headers={"authorization": f"token {token}"}, json={"name": "python3"}, timeout=60
        ).json()
        assert _typed(f"ws://127.0.0.1:{mine}/api/kernels/{kernel['id']}/channels?token={token}", "6 * 7") == "42"
    finally:
        forward.send_signal(signal.SIGINT)
        forward.wait(20)
        lab.tenant.stop("notes")
        wait_for(lambda: lab.state("notes") == "cancelled")


def _typed(url, code):
    """What a notebook's kernel answers to a cell."""
    head = {"msg_id": "m1", "msg_type": "execute_request", "username": "u", "session": "s", "version": "5.3", "date": "2026-01-01T00:00:00Z"}
    content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
    with connect(url, proxy=None) as line:
        line.send(json.dumps({"header": head, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": []}))
        while True:
            said = json.loads(line.recv(timeout=60))
            if said["header"]["msg_type"] == "execute_result":
                return said["content"]["data"]["text/plain"]


def _answers(port, path="/"):
    try:
        return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_who_may_not_open_a_shell_learns_nothing(lab):
    with lab.server.operator() as operator:
        operator.create_project("other")
        keys = {scope: operator.create_key(f"k {scope}", scope, "acme").secret for scope in (Scope.READ, Scope.INFER)}
        stranger = operator.create_key("s", Scope.ADMIN, "other").secret
    url = lab.server.url.replace("http", "ws") + "/v1/workloads/lab/"
    for path in ("exec?arg=id", "forward?port=22"):
        for headers in (
            {},
            {"Authorization": "Bearer nonsense"},
            {"Authorization": f"Bearer {keys[Scope.READ]}"},
            {"Authorization": f"Bearer {keys[Scope.INFER]}"},
        ):
            with pytest.raises(InvalidStatus), connect(url + path, additional_headers=headers, proxy=None):
                pass
        with connect(url + path, additional_headers={"Authorization": f"Bearer {stranger}"}, proxy=None) as line:
            assert json.loads(line.recv())["error"] == "no workload 'lab'"
    refused = lab.run("ssh", "nothing")
    assert refused.returncode == 3
    assert "no workload" in refused.stderr


def test_what_does_not_run_has_no_shell_and_says_why(lab):
    lab.tenant.submit("name: short\nrun: 'true'\nresources: {gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}")
    wait_for(lambda: lab.state("short") == "succeeded")
    refused = lab.run("exec", "short", "true")
    assert (refused.returncode, "short is succeeded" in refused.stderr) == (3, True)
    assert lab.run("forward", "lab", "nonsense").returncode == 2


def test_a_server_that_dies_under_a_shell_is_told_in_a_sentence(tmp_path):
    lab = Lab(tmp_path)
    there = subprocess.Popen(
        [sys.executable, "-m", "headframe", "exec", "lab", "--", "sh", "-c", "echo up; sleep 60"],
        env=lab.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert there.stdout.readline() == "up\n"
    lab.server.kill()
    said = there.communicate(timeout=30)[1]
    assert there.returncode == 3
    assert "the server ended the connection" in said
    assert "Traceback" not in said
    lab.server.start()
    lab.tenant.stop("lab")
    wait_for(lambda: lab.state("lab") == "cancelled")
    lab.server.kill(signal.SIGTERM)


def test_an_agent_that_dies_under_a_shell_is_told_in_a_sentence_and_the_work_goes_on(tmp_path):
    lab = Lab(tmp_path, far=True)
    words = ["exec", "lab", "--", "sh", "-c", "echo up $$; sleep 60"]
    there = subprocess.Popen([sys.executable, "-m", "headframe", *words], env=lab.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    up, pid = there.stdout.readline().split()
    assert up == "up"
    lab.rig.kill()
    said = there.communicate(timeout=30)[1]
    assert there.returncode == 3
    assert "the connection to the machine that this is on broke" in said
    assert "Traceback" not in said
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 10)
    lab.rig.run()
    assert wait_for(lambda: (done := lab.run("exec", "lab", "echo", "again")).returncode == 0 and done.stdout) == "again\n"
    lab.rig.kill(signal.SIGTERM)
    lab.server.kill(signal.SIGTERM)


def test_files_stay_on_a_volume_and_the_workspace_goes_when_nobody_uses_it(lab):
    lab.start("idle", "idle_timeout: 3s")
    assert lab.run("exec", "idle", "--", "sh", "-c", 'echo kept > "$HEADFRAME_VOLUME_HOME/note"').returncode == 0
    shell = pexpect.spawn(sys.executable, ["-m", "headframe", "ssh", "idle"], env=lab.env, timeout=20, encoding="utf-8")
    shell.sendline("sleep 5; echo awa''ke")
    shell.expect("awake")
    assert lab.state("idle") == "running", "while somebody is there it stays"
    shell.sendline("exit")
    shell.expect(pexpect.EOF)
    wait_for(lambda: lab.state("idle") == "cancelled", 20)
    assert lab.tenant.workload("idle").workload.reason == "idle"
    assert lab.run("exec", "lab", "--", "sh", "-c", 'cat "$HEADFRAME_VOLUME_HOME/note"').stdout == "kept\n"
