"""The real vLLM behind an endpoint, on a CPU: `make vllm` (some gigabytes, some minutes) or HEADFRAME_VLLM=PYTHON-THAT-HAS-IT. Everything else about gateways is shown with llama.cpp's
server and scripted ones; this is what only the engine that most people run can show.
"""

import json
import os
import re
import time

import httpx
import openai
import pytest

import tiny_model
from support import wait_for
from test_endpoints import Cloud, replica_secret, say

PYTHON = os.environ.get("HEADFRAME_VLLM", "")
pytestmark = [pytest.mark.skipif(not PYTHON, reason="opt-in: make vllm"), pytest.mark.timeout(600)]
RUN = (
    f"exec {PYTHON} -m vllm.entrypoints.openai.api_server --model MODEL --served-model-name tiny --host $HEADFRAME_HOST --port $HEADFRAME_PORT --api-key $HEADFRAME_API_KEY \
--enforce-eager --dtype float32 --max-model-len 2048"
)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    root = tmp_path_factory.mktemp("vllm")
    tiny_model.make_hf(root / "tiny")
    made = Cloud(root)
    run = RUN.replace("MODEL", str(root / "tiny"))
    env = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "HOME": str(root)}
    made.apply(root / "tiny", wait=False, run=run, env=env, pricing={"input": "100", "output": "200"}, start_timeout="8m",
               resources={"gpu": 0, "cpu": 1, "memory": "4GB", "disk": "1GB"})  # fmt: skip
    wait_for(lambda: made.ready() == 1, 480)
    yield made
    made.stop()


def direct(cloud, path, **more):
    """The replica itself, past the gateway."""
    port = cloud.operator.workload("tiny.1").allocations[0].parts[0].port
    secret = {"authorization": f"Bearer {replica_secret(cloud, 'tiny.1')}"}
    return httpx.request("POST" if more else "GET", f"http://127.0.0.1:{port}{path}", headers=secret, timeout=60, **more)


def running(cloud):
    found = re.search(r"^vllm:num_requests_running\{[^}]*\} (\S+)", direct(cloud, "/metrics").text, re.MULTILINE)
    return float(found[1])


def test_text_and_tokens_are_vllms_own(cloud):
    client = cloud.client(timeout=60)
    whole = say(client, max_tokens=60)
    own = direct(
        cloud,
        "/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 60, "temperature": 0},
    ).json()
    assert whole.choices[0].message.content == own["choices"][0]["message"]["content"]
    assert (
        (whole.usage.prompt_tokens, whole.usage.completion_tokens)
        == (own["usage"]["prompt_tokens"], own["usage"]["completion_tokens"])
        == (whole.usage.prompt_tokens, 60)
    )
    parts = list(say(client, max_tokens=60, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    asked = list(say(client, max_tokens=60, stream=True, stream_options={"include_usage": True}))
    assert asked[-1].usage.completion_tokens == 60


def test_an_unknown_model_and_a_prompt_too_long_are_refused_as_openai_does(cloud):
    with pytest.raises(openai.NotFoundError) as refused:
        cloud.client().chat.completions.create(model="other", messages=[{"role": "user", "content": "x"}])
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        say(cloud.client(timeout=60), "word " * 5000)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_the_work(cloud, stream):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "go on"}], "max_tokens": 1900, "temperature": 0, "stream": stream}
    with httpx.Client(timeout=60) as client:
        request = client.build_request("POST", cloud.url + "/chat/completions", json=body, headers={"authorization": f"Bearer {cloud.key}"})
        if stream:
            answer = client.send(request, stream=True)
            next(answer.iter_lines())
            answer.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.send(client.build_request("POST", request.url, json=body, headers=request.headers, timeout=0.2))
    wait_for(lambda: running(cloud) == 0, 5)


def test_what_was_delivered_of_a_stream_that_was_left_is_counted_with_vllms_tokenizer(cloud):
    before = settled(cloud)
    with httpx.stream("POST", cloud.url + "/chat/completions", json={"model": "tiny", "messages": [{"role": "user", "content": "go on"}], "max_tokens": 1900, "stream": True},
                      headers={"authorization": f"Bearer {cloud.key}"}, timeout=60) as answer:  # fmt: skip
        text = ""
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
            if len(text) > 300:
                break
    wait_for(lambda: cloud.show().total.completion > before.completion, 15)
    told = settled(cloud)
    read = direct(cloud, "/tokenize", json={"model": "tiny", "prompt": text, "add_special_tokens": False}).json()["count"]
    assert read <= told.completion - before.completion < 1900, "what was read, and what was on its way"


def settled(cloud):
    """What is counted, once nothing more comes."""
    last = None
    while (now := cloud.show().total) != last:
        last = now
        time.sleep(2)
    return now
