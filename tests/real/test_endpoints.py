"""Endpoints through everything: the server, placement, the local engine, the gateway, and llama.cpp's own server on a tiny model that the test makes, asked by OpenAI's
own client.
"""

import concurrent.futures
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest

import tiny_model
from gateways import free_port
from headframe.client import ApiError, Client
from headframe.model.api import NodeBody, ServiceBody
from headframe.model.people import Scope
from headframe.model.units import NANO_PER_USD
from support import Rig, Server, wait_for

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    tiny_model.make(path)
    return path


class Cloud:
    """A server with its gateway, a project and a client of it."""

    def __init__(self, root):
        self.port = free_port()
        self.server = Server(root)
        self.start()
        self.operator = self.server.operator()
        wait_for(lambda: any(view.node.state == "ready" for view in self.operator.nodes()))
        self.project = self.operator.create_project("acme", 0)
        self.operator.grant_credit(self.project.id, 10 * NANO_PER_USD, "")
        self.key = self.operator.create_key("infer", Scope.INFER, "acme").secret

    def start(self):
        self.server.start("--gateway-port", str(self.port))

    def apply(self, model, wait=True, **more):
        said = {"type": "endpoint", "name": "tiny", "model": "tiny", "run": f"exec {sys.executable} {HERE}/tiny_model.py serve {model}",
                "resources": {"gpu": 0, "cpu": 0.1, "memory": "200MB", "disk": "1MB"}, **more}  # fmt: skip
        made = self.operator.apply_endpoint(json.dumps(said), None, "acme")
        if wait:
            wait_for(lambda: any(each.ready for each in self.show(said["name"]).replicas), 30)
        return made

    def show(self, name="tiny"):
        return self.operator.endpoint(name)

    @property
    def url(self):
        return self.show().base_url

    def client(self, **more):
        return openai.OpenAI(base_url=self.url, api_key=self.key, **{"max_retries": 0, "timeout": 30, **more})

    def ready(self):
        return sum(each.ready for each in self.show().replicas)

    def kill_gateway(self):
        pid = int((self.server.data / "gateway/pid").read_text())
        os.kill(pid, signal.SIGKILL)
        return pid

    def stop(self):
        if self.server.process.poll() is None:
            for each in self.operator.endpoints().items:
                self.operator.stop_endpoint(each.endpoint.id)
            wait_for(lambda: not self.operator.endpoints().items, 20)
        self.operator.close()
        if self.server.process.poll() is None:
            self.server.kill(signal.SIGTERM)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            self.kill_gateway()


@pytest.fixture
def cloud(tmp_path):
    made = Cloud(tmp_path)
    yield made
    made.stop()


def say(client, text="hello there", **more):
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], **{"max_tokens": 20, "temperature": 0, **more})


def test_a_real_model_is_served_and_its_text_and_tokens_are_the_servers_own(cloud, model):
    cloud.apply(model)
    client = cloud.client()
    whole = say(client)
    parts = list(say(client, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert all(part.choices for part in parts)
    asked = list(say(client, stream=True, stream_options={"include_usage": True}))
    assert (asked[-1].usage.prompt_tokens, asked[-1].usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    port = cloud.operator.workload("tiny.1").allocations[0].parts[0].port
    secret = {"authorization": f"Bearer {replica_secret(cloud, 'tiny.1')}"}
    direct = httpx.post(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        headers=secret,
        json={"messages": [{"role": "user", "content": "hello there"}], "max_tokens": 20, "temperature": 0},
    )
    assert direct.json()["choices"][0]["message"]["content"] == whole.choices[0].message.content
    assert httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={"messages": []}).status_code == 401, (
        "who goes past the gateway has no key"
    )
    floats = client.embeddings.create(model="tiny", input="hello", encoding_format="float").data[0].embedding
    assert client.embeddings.create(model="tiny", input="hello").data[0].embedding == pytest.approx(floats, abs=1e-6)
    assert (
        httpx.get(f"{cloud.url.removesuffix('/v1')}/endpoints/tiny/props", headers={"authorization": f"Bearer {cloud.key}"}).json()["total_slots"]
        == 4
    )
    told = wait_for(lambda: (total := cloud.show().total).requests >= 6 and total, 15)
    assert told.completion >= 60


def replica_secret(cloud, name):
    from headframe.model.keys import replica_key

    return replica_key((cloud.server.data / "pepper").read_bytes(), f"{cloud.show().replicas[0].workload.id}.1")


def test_tokens_are_billed_to_whoever_asked_and_the_ledger_agrees_with_the_answers(cloud, model):
    cloud.apply(model, pricing={"input": "100", "output": "200"})
    other = cloud.operator.create_project("other", 0)
    cloud.operator.grant_credit(other.id, NANO_PER_USD, "")
    key = cloud.operator.create_key("o", Scope.INFER, "other").secret
    client = openai.OpenAI(base_url=cloud.url, api_key=key, max_retries=2)
    used = [say(client, f"question {n}").usage for n in range(5)]
    for _ in range(3):
        *_, last = say(client, stream=True, stream_options={"include_usage": True})
        used.append(last.usage)
    due = sum(each.prompt_tokens * 100_000 + each.completion_tokens * 200_000 for each in used)

    def billed():
        bill = cloud.operator.bill("other", "")
        return sum(entry.amount_nano for entry in bill.entries if entry.account == "operator/revenue") == due

    wait_for(billed, 20)
    project = next(row for row in cloud.operator.projects().items if row.name == "other")
    assert project.credit_nano + project.held_nano == NANO_PER_USD - due
    assert cloud.show().endpoint.earned_nano == due
    assert cloud.show().rate_nano == 0, "its machines' time is nobody's bill"
    thrifty = cloud.operator.create_key("thrifty", Scope.INFER, "other", budget_nano=20_000_000)
    spent, frugal = 0, openai.OpenAI(base_url=cloud.url, api_key=thrifty.secret, max_retries=0)
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(20):
            told = say(frugal).usage
            spent += told.prompt_tokens * 100_000 + told.completion_tokens * 200_000
    assert refused.value.code == "insufficient_quota"
    assert "This key can't pay for the request: its budget of $0.0200 a month leaves no more" in str(refused.value)
    assert 0 < spent <= 20_000_000
    assert say(client).usage, "the project's other keys are free of it"
    wait_for(lambda: next(key.spent_nano for key in cloud.operator.keys().items if key.id == thrifty.key.id) == spent, 20)
    poor = cloud.operator.create_project("poor", 0)
    with pytest.raises(openai.RateLimitError) as refused:
        say(openai.OpenAI(base_url=cloud.url, api_key=cloud.operator.create_key("p", Scope.INFER, poor.name).secret, max_retries=0))
    assert refused.value.code == "insufficient_quota"
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_from_zero_to_what_is_needed_and_back_without_a_request_lost(cloud, model):
    cloud.apply(model, replicas="0..3", scaling={"metric": "concurrency", "target": 2}, idle_timeout="8s")
    wait_for(lambda: cloud.ready() == 0 and not cloud.show().endpoint.wanted, 40)
    began = time.monotonic()
    assert say(cloud.client()).choices[0].message.content
    cold_s = time.monotonic() - began
    assert cold_s < 15, f"woken after {cold_s:.1f} s"
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        until = time.monotonic() + 12
        client = cloud.client(timeout=60)

        def keep_asking(n):
            answers = 0
            while time.monotonic() < until:
                answers += bool(say(client, f"{n} {answers}", max_tokens=400).usage)
            return answers

        asked = [pool.submit(keep_asking, n) for n in range(12)]
        wait_for(lambda: cloud.ready() == 3, 30)
        assert all(each.result() > 0 for each in asked), "none was refused, none broke"
    assert cloud.show().total.failed == 0
    wait_for(lambda: cloud.ready() == 0 and cloud.show().endpoint.wanted == 0, 60)
    held = [entry for entry in cloud.operator.bill("acme", "").entries if entry.account == "operator/revenue"]
    assert held, "the replicas' time was billed"


def test_a_new_revision_takes_over_without_a_request_lost(cloud, model):
    cloud.apply(model, replicas=2)
    wait_for(lambda: cloud.ready() == 2, 30)
    client, over, failed, answers = cloud.client(), [], [], []

    def keep_asking():
        while not over:
            try:
                answers.append(say(client).choices[0].message.content)
            except openai.APIError as error:
                failed.append(error)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(keep_asking)
        try:
            assert cloud.apply(model, replicas=2, env={"NEW": "1"}, wait=False).endpoint.revision == 2
            wait_for(
                lambda: [each.workload.revision for each in cloud.show().replicas if each.ready] == [2, 2] and len(cloud.show().replicas) == 2, 60
            )
        finally:
            over.append(True)
    assert not failed
    assert len(answers) > 10
    assert cloud.apply(model, replicas=2, env={"NEW": "1"}, wait=False).endpoint.revision == 2, "the same file changes nothing"


def test_a_replica_that_fails_is_replaced_with_a_pause_and_the_reason_is_told(cloud, model):
    cloud.apply(model, wait=False, run="echo no weights here >&2; exit 3")
    told = wait_for(lambda: (row := cloud.show().endpoint).failures >= 1 and row, 20)
    assert "exited with 3" in told.why
    cloud.apply(model)
    assert say(cloud.client()).usage
    wait_for(lambda: not cloud.show().endpoint.why, 10)
    replica = next(each for each in cloud.show().replicas if each.ready)
    journal = cloud.server.data / "allocations/active" / f"{replica.workload.id}.1" / "journal"
    os.kill(json.loads(journal.read_text().splitlines()[0])["pid"], signal.SIGKILL)
    wait_for(lambda: cloud.ready() == 1 and all(each.workload.name != replica.workload.name for each in cloud.show().replicas), 30)
    assert say(cloud.client()).usage


def test_requests_go_on_while_the_control_plane_is_away_and_also_after_the_gateway_began_anew_then(cloud, model):
    cloud.apply(model, pricing={"input": "100", "output": "200"})
    client = cloud.client(max_retries=4)
    say(client)
    url = cloud.url
    cloud.server.kill()
    due = sum(say(client).usage.completion_tokens for _ in range(5))
    assert due == 100
    pid = cloud.kill_gateway()
    data = cloud.server.data / "gateway"
    import subprocess

    port = url.split(":")[2].split("/")[0]
    argv = [
        sys.executable,
        "-m",
        "headframe",
        "gateway",
        "--data",
        data,
        "--server",
        "http://127.0.0.1:9",
        "--server",
        cloud.server.url,
        "--pepper",
        cloud.server.data / "pepper",
        "--key-file",
        data / "key",
        "--port",
        port,
    ]
    again = subprocess.Popen([*map(str, argv)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert again.pid != pid
        wait_for(lambda: _says(client), 15)
        cloud.start()
        wait_for(lambda: cloud.show().endpoint.earned_nano >= 7 * 20 * 200_000, 30)
        assert say(client).usage
    finally:
        again.terminate()
        again.wait(20)


def _says(client):
    try:
        return say(client).usage
    except openai.APIError:
        return None


def test_a_machine_that_joined_serves_once_its_address_is_known(cloud, model, tmp_path):
    rig = Rig(tmp_path / "rig", cloud.server).join()
    try:
        wait_for(lambda: any(view.node.name == "rig-1" and view.node.state == "ready" for view in cloud.operator.nodes()))
        own = next(view.node for view in cloud.operator.nodes() if view.node.name != "rig-1")
        cloud.operator.move_node(own.id, ServiceBody(to="drain"))
        cloud.apply(model, wait=False)
        waits = wait_for(lambda: [each for replica in cloud.show().replicas for each in replica.waits], 20)
        assert any(each.rule == "address" and "node set" in each.change for each in waits), waits
        with pytest.raises(ApiError):
            cloud.operator.set_node("rig-1", NodeBody(address="http://10.0.0.7:80"))
        cloud.operator.set_node("rig-1", NodeBody(address="127.0.0.1"))
        wait_for(lambda: cloud.ready() == 1, 40)
        assert cloud.show().replicas[-1].node == "rig-1"
        assert say(cloud.client()).usage
    finally:
        cloud.operator.stop_endpoint("tiny")
        wait_for(lambda: not cloud.operator.endpoints().items, 20)
        rig.kill()


def test_who_may_see_and_change_an_endpoint(cloud, model):
    cloud.apply(model, wait=False)
    cloud.operator.create_project("other", 0)
    stranger = Client(cloud.server.url, cloud.operator.create_key("s", Scope.ADMIN, "other").secret)
    with pytest.raises(ApiError) as refused:
        stranger.endpoint("tiny")
    assert refused.value.problem.status == 404
    assert not stranger.endpoints().items
    with pytest.raises(ApiError) as refused:
        stranger.apply_endpoint('{"type":"endpoint","name":"x","run":"x","pricing":{"input":1,"output":1}}')
    assert refused.value.problem.status == 403
    with pytest.raises(ApiError) as refused:
        Client(cloud.server.url, cloud.key).endpoints()
    assert refused.value.problem.status == 403, "a key to ask models does nothing else"
    assert cloud.operator.stop_endpoint("tiny").endpoint.state == "stopping"
    wait_for(lambda: cloud.show().endpoint.state == "stopped", 20)
    assert not cloud.operator.endpoints().items
