"""kill -9 of the gateway, of replicas and of the control plane while clients ask: no token is billed twice, none that was delivered goes unbilled but for the stated
window, and every client gets an answer or a clean error. HEADFRAME_KILLS=1000 for many.
"""

import contextlib
import json
import os
import random
import signal
import threading
import time
import uuid

import httpx
import pytest

from headframe.client import ApiError, Unreachable
from headframe.engines.local import read_journal
from support import wait_for
from test_endpoints import Cloud, cloud, model  # noqa: F401

KILLS = int(os.environ.get("HEADFRAME_KILLS", "24"))
INPUT, OUTPUT = 100_000, 200_000
CLIENTS = 4
MORE_NANO = 990 * 10**9


class Asker(threading.Thread):
    """Asks, streamed and not, and tries again under the same request id until it has a whole answer."""

    def __init__(self, url, key, seed):
        super().__init__(daemon=True)
        self.url, self.key, self.rng = url, key, random.Random(seed)
        self.over, self.whole, self.tries, self.strange = threading.Event(), {}, 0, []

    def run(self):
        while not self.over.is_set():
            name = uuid.uuid4().hex
            for _ in range(200):
                self.tries += 1
                try:
                    used = self.ask(name)
                except httpx.HTTPError:
                    used = None
                except Exception as error:
                    self.strange.append(repr(error))
                    return
                if used:
                    self.whole[name] = used["prompt_tokens"] * INPUT + used["completion_tokens"] * OUTPUT
                    break
                time.sleep(0.1)

    def ask(self, name):
        streamed, count = self.rng.random() < 0.6, self.rng.randint(5, 300)
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "tell me"}],
            "max_tokens": count,
            "stream": streamed,
            **({"stream_options": {"include_usage": True}} if streamed else {}),
        }
        headers = {"authorization": f"Bearer {self.key}", "x-request-id": name}
        with httpx.Client(timeout=20) as client:
            if not streamed:
                answer = client.post(self.url, json=body, headers=headers)
                if answer.status_code == 200:
                    return answer.json()["usage"]
                assert "error" in answer.json(), answer.text
                return None
            with client.stream("POST", self.url, json=body, headers=headers) as answer:
                if answer.status_code != 200:
                    assert "error" in json.loads(answer.read())
                    return None
                used = done = None
                for line in answer.iter_lines():
                    if line == "data: [DONE]":
                        done = True
                    elif line.startswith("data:"):
                        said = json.loads(line[5:])
                        if "error" in said:
                            return None
                        used = said.get("usage") or used
                assert done, "a stream that was cut was ended as if it were whole"
                return used


@pytest.mark.slow
@pytest.mark.timeout(60 + 4 * KILLS)
def test_no_token_is_billed_twice_or_lost_through_kills_of_everything(cloud, model):  # noqa: F811
    cloud.operator.grant_credit(cloud.project.id, MORE_NANO, "")
    cloud.apply(model, replicas=2, pricing={"input": "100", "output": "200"})
    wait_for(lambda: cloud.ready() == 2, 30)
    url, rng, killed = cloud.url + "/chat/completions", random.Random(7), {"gateway": 0, "server": 0, "replica": 0}
    askers = [Asker(url, cloud.key, n) for n in range(CLIENTS)]
    for asker in askers:
        asker.start()
    for _ in range(KILLS):
        time.sleep(rng.uniform(0.5, 2.5))
        what = rng.choice(["gateway", "gateway", "server", "replica"])
        killed[what] += 1
        if what == "gateway":
            with contextlib.suppress(ProcessLookupError):
                cloud.kill_gateway()
        elif what == "server":
            cloud.server.kill()
            cloud.start()
        else:
            kill_replica(cloud, rng)
    for asker in askers:
        asker.over.set()
    for asker in askers:
        asker.join(60)
        assert not asker.strange, asker.strange
    due = sum(sum(asker.whole.values()) for asker in askers)
    answered, tries = sum(len(asker.whole) for asker in askers), sum(asker.tries for asker in askers)
    assert answered > KILLS
    earned = settled(cloud)
    dearest = max(max(asker.whole.values()) for asker in askers)
    print(f"\n{KILLS} kills ({killed}), {answered} whole answers in {tries} tries: due {due / 1e9:.4f}, billed {earned / 1e9:.4f}")
    # A kill leaves at most what ended in the same turn of the loop unwritten; what was cut is billed as far as it had come, and less of it where the next try is whole.
    assert earned >= due - killed["gateway"] * CLIENTS * dearest
    assert earned <= due + (tries - answered) * dearest


def kill_replica(cloud, rng):
    with contextlib.suppress(ApiError, Unreachable, FileNotFoundError, ProcessLookupError, IndexError):
        journals = sorted((cloud.server.data / "allocations/active").glob("*/journal"))
        lines = read_journal(rng.choice(journals).parent)
        os.kill(next(line.pid for line in lines if line.event == "running"), signal.SIGKILL)


def settled(cloud):
    """What is billed once nothing more comes."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 8:
        with contextlib.suppress(ApiError, Unreachable):
            now = cloud.show().endpoint.earned_nano
            if now != last:
                last, since = now, time.monotonic()
        time.sleep(0.2)
    project = next(row for row in cloud.operator.projects().items if row.name == "acme")
    spent = 10_000_000_000 + MORE_NANO - project.credit_nano - project.held_nano
    assert spent == last, "the ledger and the endpoint agree"
    return last
