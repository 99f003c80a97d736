"""The gateway as a process, its control plane away, before replicas that are scripted: every promise that OpenAI's clients build on, and every way in which a replica
fails. Real model servers are in test_endpoints.py.
"""

import asyncio
import base64
import json
import socket
import struct
import time

import httpx
import openai
import pytest

from gateways import Gate, Script, delta, events, make_key, usage
from headframe.model.endpoint import EndpointEntry, ProjectEntry
from headframe.model.serving import Pricing, Serving

SOLD = {"pricing": Pricing.PER_TOKEN, "input_nano": 1_000_000_000, "output_nano": 2_000_000_000}


async def hello(request, reply):
    """A well-behaved server."""
    asked = request.json
    if not asked.get("stream"):
        reply.json(
            {
                "id": "c",
                "object": "chat.completion",
                "model": "m",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}}],
                "usage": usage(),
            }
        )
        return
    reply.stream()
    for text in ("Hel", "lo", "!"):
        await reply.event(delta(text))
    await reply.event(delta("", "stop"))
    if (asked.get("stream_options") or {}).get("include_usage"):
        await reply.event({"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": usage()})
    await reply.event(b"[DONE]")
    reply.end()


@pytest.fixture
def gate(tmp_path):
    made = []

    def start(*plays, **more):
        made.append(Gate(tmp_path / f"g{len(made)}", [play if isinstance(play, Script) else Script(play) for play in plays], **more))
        return made[-1].start()

    yield start
    for each in made:
        each.stop()


def stream(gate, body=None, headers=None):
    with httpx.stream("POST", f"{gate.url}/v1/chat/completions", json={"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}], **(body or {})},
                      headers={**gate.auth(), **(headers or {})}, timeout=20) as answer:  # fmt: skip
        return answer, answer.read().decode()


def test_an_answer_comes_through_with_its_request_id_and_without_what_is_the_engines_own(gate):
    gate = gate(hello)
    answer = gate.ask(headers={"x-request-id": "mine-7", "cookie": "a=b", "x-custom": "1"})
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"] == "Hello"
    assert answer.headers["x-request-id"] == "mine-7"
    assert answer.headers["openai-processing-ms"].isdigit()
    assert "server" not in answer.headers
    seen = gate.scripts[0].seen[-1]
    assert seen.headers["x-request-id"] == "mine-7"
    assert seen.headers["authorization"].startswith("Bearer hfr_"), "the client's key never leaves the gateway"
    assert seen.headers["x-custom"] == "1"
    assert "cookie" not in seen.headers
    assert gate.ask().headers["x-request-id"] != gate.ask().headers["x-request-id"]


def test_usage_is_asked_for_even_when_the_client_did_not_and_its_chunk_is_then_left_out(gate):
    gate = gate(hello)
    answer, text = stream(gate)
    said = events(text)
    assert said[-1] == "[DONE]"
    assert said.count("[DONE]") == 1
    assert all(json.loads(each)["choices"] for each in said[:-1]), "no chunk without choices: clients index choices[0]"
    assert (answer.headers["content-type"], answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == (
        "text/event-stream",
        "no-cache",
        "no",
    )
    assert gate.scripts[0].seen[-1].json["stream_options"] == {"include_usage": True}
    answer, text = stream(gate, {"stream_options": {"include_usage": True}})
    assert json.loads(events(text)[-2]) | {"id": ""} == {"id": "", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": usage()}
    lines = gate.settled(2)
    assert [(line["prompt"], line["completion"]) for line in lines] == [(5, 3), (5, 3)]


@pytest.mark.parametrize("options", ['{"include_usage": false}', "null", '{"other": 12345678901234567890}', '{ "include_usage":false ,"x":[1.50]}'])
def test_options_of_a_stream_are_merged_and_every_other_byte_stays(gate, options):
    gate = gate(hello)
    body = (
        b'{"z":1.50, "model":"m","stream":true , "big":123456789012345678901234567890,"stream_options":'
        + options.encode()
        + b',"messages":[{"role":"user","content":"\\u00e9 \xc3\xa9"}]}'
    )
    assert gate.ask(body).status_code == 200
    got = gate.scripts[0].seen[-1].body
    assert b"123456789012345678901234567890" in got
    assert b'"\\u00e9 \xc3\xa9"' in got
    assert b"1.50" in got
    asked = json.loads(got)["stream_options"]
    assert asked == {**(json.loads(options) or {}), "include_usage": True}


def test_errors_have_the_shape_and_the_words_that_clients_branch_on(gate):
    gate = gate(hello)
    for answer, status, code in (
        (gate.ask(key="sk-nonsense"), 401, "invalid_api_key"),
        (gate.ask(key=gate.key[:-1] + ("0" if gate.key[-1] != "0" else "1")), 401, "invalid_api_key"),
        (httpx.post(f"{gate.url}/v1/chat/completions", json={}), 401, "invalid_api_key"),
        (gate.ask({"model": "other"}), 404, "model_not_found"),
        (gate.ask({"model": None}), 400, "missing_required_parameter"),
        (gate.ask({"messages": []}), 400, "missing_required_parameter"),
        (gate.ask({"max_tokens": "many"}), 400, "invalid_value"),
        (gate.ask(b"{nonsense"), 400, "invalid_json"),
        (gate.ask(b"\xff\xfe"), 400, "invalid_json"),
        (gate.ask(b"[]"), 400, "invalid_value"),
        (httpx.get(f"{gate.url}/v1/chat/completions", headers=gate.auth()), 405, "method_not_allowed"),
        (httpx.get(f"{gate.url}/nowhere", headers=gate.auth()), 404, "not_found"),
    ):
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == code
        assert answer.headers["x-request-id"]
    assert not gate.scripts[0].seen, "nothing of this reached a replica"


def test_the_official_client_streams_lists_models_and_raises_what_it_should(gate):
    gate = gate(hello)
    client = openai.OpenAI(base_url=f"{gate.url}/v1", api_key=gate.key, max_retries=0)
    parts = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == "Hello!"
    assert [model.id for model in client.models.list()] == ["m"]
    assert client.models.retrieve("m").owned_by == "acme"
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="gone", messages=[{"role": "user", "content": "x"}])
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{gate.url}/v1", api_key="sk-no", max_retries=0).models.list()


def test_model_names_with_slashes_are_found_and_the_name_that_was_asked_for_is_kept(gate):
    async def renames(request, reply):
        assert request.json["model"] == "org/m"
        if request.json.get("stream"):
            reply.stream()
            await reply.event(delta("a", model="./org/m@main"))
            await reply.event(b"[DONE]")
            reply.end()
        else:
            reply.json({"model": "./org/m@main", "choices": [{"message": {"content": "x"}}], "usage": usage()})

    gate = gate(renames, serving={"model": "org/m"})
    assert httpx.get(f"{gate.url}/v1/models/org/m", headers=gate.auth()).json()["id"] == "org/m"
    answer = gate.ask({"model": "mine"})
    assert answer.json()["model"] == "mine"
    _, text = stream(gate, {"model": "mine"})
    assert json.loads(events(text)[0])["model"] == "mine"


@pytest.mark.parametrize("when", ["mid-stream", "before the first token", "not streamed"])
def test_a_client_that_goes_is_told_to_the_replica_within_a_tenth_of_a_second(gate, when):
    async def slow(request, reply):
        if when == "mid-stream":
            reply.stream()
            await reply.event(delta("a"))
        await asyncio.sleep(30)

    gate = gate(slow)
    with socket.create_connection(("127.0.0.1", gate.port)) as client:
        body = json.dumps({"model": "m", "stream": when != "not streamed", "messages": [{"role": "user", "content": "x"}]}).encode()
        client.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gate.key}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait(lambda: gate.scripts[0].seen)
        if when == "mid-stream":
            assert b"200" in client.recv(100)
        left = time.monotonic()
    wait(lambda: gate.scripts[0].closed)
    assert gate.scripts[0].closed[0] - left < 0.1
    line = gate.settled(1)[0]
    assert line.get("completion", 0) == (1 if when == "mid-stream" else 0)


def test_a_request_that_waits_for_a_replica_leaves_when_its_client_does_and_is_refused_when_patience_ends(gate):
    gate = gate(Script(hello, ready=False), serving={"start_s": 3})
    with socket.create_connection(("127.0.0.1", gate.port)) as client:
        body = b'{"model":"m","messages":[{}]}'
        client.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gate.key}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
    began = time.monotonic()
    answer = gate.ask()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "model_not_ready"
    assert "503" in answer.json()["error"]["message"]
    assert int(answer.headers["retry-after"]) > 0
    assert 2 < time.monotonic() - began < 6
    answer = gate.ask(headers={"x-stainless-read-timeout": "2"})
    assert answer.status_code == 503
    assert [line.get("prompt", 0) for line in gate.settled(3)] == [0, 0, 0]


def test_held_requests_are_answered_when_a_replica_becomes_ready(gate):
    script = Script(hello, ready=False)
    gate = gate(script, serving={"start_s": 20})
    with httpx.Client(timeout=20) as client:
        import concurrent.futures

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(client.post, f"{gate.url}/v1/chat/completions", json={"model": "m", "messages": [{}]}, headers=gate.auth())
                for _ in range(8)
            ]
            time.sleep(0.3)
            assert not any(each.done() for each in asked)
            script.ready = True
            assert [each.result().status_code for each in asked] == [200] * 8


@pytest.mark.parametrize("first", ["refuses", "breaks before its answer", "is loading", "fails with its first event"])
def test_where_nothing_of_an_answer_came_another_replica_is_asked(gate, first):
    async def bad(request, reply):
        if first == "breaks before its answer":
            reply.cut()
        elif first == "is loading":
            reply.json({"error": {"message": "loading"}}, 503)
        else:
            reply.stream()
            await reply.event({"error": {"message": "out of memory", "code": 500}})
            await reply.event(b"[DONE]")
            reply.end()

    wrong = Script(bad)
    gate = gate(wrong, hello)
    if first == "refuses":
        wrong.stop()
    for _ in range(6):
        answer, text = stream(gate)
        assert answer.status_code == 200
        assert events(text)[-1] == "[DONE]"
        assert "Hel" in text
        assert "memory" not in text


def test_an_engine_that_fails_with_its_first_event_becomes_a_real_error_where_there_is_no_other(gate):
    async def bad(request, reply):
        reply.stream()
        await reply.event({"error": {"message": "out of memory", "code": 500}})
        await reply.event(b"[DONE]")
        reply.end()

    answer, text = stream(gate(bad))
    assert answer.status_code == 502
    assert json.loads(text)["error"]["code"] == "upstream_error"


@pytest.mark.parametrize("how", ["between events", "inside an event", "cleanly, without its end"])
def test_a_stream_that_breaks_is_never_taken_for_whole(gate, how):
    async def breaks(request, reply):
        if how == "cleanly, without its end":
            reply.writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: " + json.dumps(delta("Hel")).encode() + b"\n\n")
            await reply.writer.drain()
            reply.writer.close()
            reply.over = True
            return
        reply.stream()
        await reply.event(delta("Hel"))
        if how == "inside an event":
            await reply.send(b'data: {"choices":[{"del')
        await asyncio.sleep(0.05)
        reply.cut()

    gate = gate(breaks)
    client = openai.OpenAI(base_url=f"{gate.url}/v1", api_key=gate.key, max_retries=0)
    with pytest.raises((openai.APIError, httpx.RemoteProtocolError)):
        said = [
            part.choices[0].delta.content
            for part in client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
        ]
        raise AssertionError(said)
    with pytest.raises(httpx.RemoteProtocolError):
        stream(gate)
    line = gate.settled(2)[0]
    assert (line["completion"], line["estimated"], line["cut"]) == (1, True, True), "what was delivered is billed"


def test_an_engine_that_forgets_to_say_done_and_one_that_says_it_twice(gate):
    async def forgets(request, reply):
        reply.stream()
        await reply.event(delta("a"))
        await reply.event(delta("", "stop") | {"usage": usage(4, 1)})
        reply.end()

    async def twice(request, reply):
        reply.stream()
        await reply.event(delta("a"))
        await reply.event(b"[DONE]")
        await reply.event(b"[DONE]")
        reply.end()

    one = gate(forgets)
    _, text = stream(one)
    assert events(text)[-1] == "[DONE]"
    assert one.settled(1)[0]["prompt"] == 4, "usage on the last chunk counts, too"
    _, text = stream(gate(twice))
    assert events(text).count("[DONE]") == 1


def test_bytes_may_be_split_anywhere_and_separators_may_be_of_either_kind(gate):
    text = "".join(f"data: {json.dumps(delta(part), ensure_ascii=False)}\r\n\r\n" for part in ("Grüße", " 世界", " ✓"))
    raw = (": a comment\n\n" + text + "data: [DONE]\r\n\r\n").encode()

    async def splits(request, reply):
        reply.stream()
        for n in range(0, len(raw), 7):
            await reply.send(raw[n : n + 7])
        reply.end()

    gate = gate(splits)
    _, got = stream(gate)
    assert got.encode() == raw
    client = openai.OpenAI(base_url=f"{gate.url}/v1", api_key=gate.key, max_retries=0)
    parts = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
    assert "".join(part.choices[0].delta.content for part in parts) == "Grüße 世界 ✓"


def test_tool_calls_reasoning_and_interleaved_choices_are_not_touched(gate):
    said = [
        {"choices": [{"index": 1, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1.50}'}}]}}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "hm", "logprobs": None}}], "usage": None},
        {"choices": [{"index": 0, "delta": {"content": "the word \"usage\" and [DONE] in a text"}}]},
    ]  # fmt: skip

    async def plays(request, reply):
        reply.stream()
        for each in said:
            await reply.event(each)
        await reply.event(b"[DONE]")
        reply.end()

    _, text = stream(gate(plays))
    assert [json.loads(each) for each in events(text)[:-1]] == said


def test_an_upstreams_error_page_becomes_json_and_its_own_json_error_stays(gate):
    async def page(request, reply):
        if request.json.get("max_tokens") == 7:
            reply.json(
                {"error": {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}}, 400
            )
        else:
            reply.writer.write(b"HTTP/1.1 500 X\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<h1>oops</h1>")

    gate = gate(page)
    answer = gate.ask({"max_tokens": 7})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = gate.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "upstream_error")
    assert [line["failed"] for line in gate.settled(2)] == [True, True]
    assert all(line.get("prompt", 0) == 0 for line in gate.served())


def test_limits_by_key_and_by_project_can_not_be_raced_past_and_say_when_to_come_back(gate):
    second, text = make_key(2, rpm=5)
    gate = gate(hello, keys=[second], projects=[ProjectEntry(id="pr-a", name="acme", rpm=8)])

    async def many(key, count):
        async with httpx.AsyncClient() as client:
            body = {"model": "m", "messages": [{}]}
            return await asyncio.gather(*(client.post(f"{gate.url}/v1/chat/completions", json=body, headers=gate.auth(key)) for _ in range(count)))

    answers = asyncio.run(many(text, 20))
    assert sum(answer.status_code == 200 for answer in answers) == 5
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.headers["x-ratelimit-limit-requests"] == "5"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert int(refused.headers["retry-after"]) > 0
    assert sum(answer.status_code == 200 for answer in asyncio.run(many(None, 20))) == 2, "of the project's 8 (one asked whether it is up) 2 are left"


def test_tokens_per_minute_are_reserved_before_and_settled_after(gate):
    second, text = make_key(2, tpm=1000)
    gate = gate(hello, keys=[second])
    answers = [gate.ask({"max_tokens": 400}, key=text) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3, "each used eight tokens, whatever it might have used"
    assert 950 < int(answers[-1].headers["x-ratelimit-remaining-tokens"]) < 1000 or answers[-1].headers["x-ratelimit-limit-tokens"] == "1000"
    assert gate.ask({"max_tokens": 1001}, key=text).status_code in {200, 429}


def test_what_a_project_may_spend_can_not_be_raced_past(gate):
    """A hundred requests at once, each of which could cost ten cents, and fifty cents to spend."""
    cents = 10_000_000

    async def slowly(request, reply):
        await asyncio.sleep(0.2)
        reply.json({"model": "m", "choices": [], "usage": usage(0, 50_000)})

    gate = gate(slowly, serving=SOLD, granted={"pr-a": 50 * cents})

    async def many():
        async with httpx.AsyncClient(timeout=30) as client:
            body = {"model": "m", "messages": [{}], "max_tokens": 50_000}
            return await asyncio.gather(*(client.post(f"{gate.url}/v1/chat/completions", json=body, headers=gate.auth()) for _ in range(100)))

    answers = asyncio.run(many())
    good = sum(answer.status_code == 200 for answer in answers)
    assert good == 4, "the fifth's ten cents and its few tokens of prompt exceed what is left"
    refused = {(answer.status_code, answer.json()["error"]["code"]) for answer in answers if answer.status_code != 200}
    assert refused == {(503, "control_plane_away")}
    assert sum(line["amount"] for line in gate.settled(4)) == 40 * cents


def test_what_a_key_may_spend_can_not_be_raced_past_and_is_its_own(gate):
    """Of a project that has a dollar, a key with thirty cents asks a hundred times at once for what may cost ten."""
    cents = 10_000_000

    async def slowly(request, reply):
        await asyncio.sleep(0.2)
        reply.json({"model": "m", "choices": [], "usage": usage(0, 50_000)})

    thrifty, text = make_key(5, budget_nano=30 * cents)
    gate = gate(slowly, serving=SOLD, keys=[thrifty], granted={"pr-a": 100 * cents, thrifty.id: 30 * cents})
    body = {"model": "m", "messages": [{}], "max_tokens": 50_000}

    async def many():
        async with httpx.AsyncClient(timeout=30) as client:
            return await asyncio.gather(*(client.post(f"{gate.url}/v1/chat/completions", json=body, headers=gate.auth(text)) for _ in range(100)))

    answers = asyncio.run(many())
    assert sum(answer.status_code == 200 for answer in answers) == 2, "the third's ten cents and its few tokens of prompt exceed what is left"
    assert gate.ask({"max_tokens": 50_000}).status_code == 200, "the project's other keys are free of it"
    assert sum(line["amount"] for line in gate.settled(3) if line["key"] == thrifty.id) == 20 * cents


def test_tokens_are_sold_to_every_project_and_to_no_key_without_one(gate):
    from headframe.model.people import Scope

    other, stranger = make_key(2, project="pr-b")
    boss, operator = make_key(3, project="", scope=Scope.OPERATOR)
    mine = EndpointEntry(id="wl-bbbbbbbbbbbbbbbb", project_id="pr-a", name="private", serving=Serving(model="private"))
    gate = gate(hello, keys=[other, boss], projects=[ProjectEntry(id="pr-a", name="a"), ProjectEntry(id="pr-b", name="b")], serving=SOLD,
                granted={"pr-a": 10**9, "pr-b": 10**9}, endpoints=[mine])  # fmt: skip
    assert gate.ask(key=stranger).status_code == 200
    assert gate.ask({"model": "private"}, key=stranger).json()["error"]["code"] == "model_not_found"
    assert [model["id"] for model in httpx.get(f"{gate.url}/v1/models", headers=gate.auth(stranger)).json()["data"]] == ["m"]
    assert gate.ask(key=operator).json()["error"]["code"] == "no_project"
    assert httpx.get(f"{gate.url}/endpoints/mine/x", headers=gate.auth(stranger)).json()["error"]["code"] == "sold_by_token"
    assert gate.settled(1)[-1]["project"] == "pr-b"


def test_tokens_that_nobody_counted_are_counted_with_the_models_own_tokenizer(gate):
    async def silent(request, reply):
        if request.path == "/apply-template":
            reply.json({"prompt": "<user>hello"})
        elif request.path == "/tokenize":
            reply.json({"tokens": list(range(len(request.json["content"])))})
        else:
            reply.stream()
            for text in ("Hel", "lo"):
                await reply.event(delta(text))
            await reply.event(b"[DONE]")
            reply.end()

    gate = gate(silent, serving=SOLD, granted={"pr-a": 10**9})
    stream(gate)
    line = gate.settled(1)[0]
    assert (line["prompt"], line["completion"], line.get("estimated", False)) == (len("<user>hello"), len("Hello"), False)
    assert line["amount"] == 11 * 1000 + 5 * 2000


def test_a_whole_answer_that_says_no_usage_is_counted_too(gate):
    async def silent(request, reply):
        if request.path == "/apply-template":
            reply.json({"prompt": "<user>hello"})
        elif request.path == "/tokenize":
            reply.json({"tokens": list(range(len(request.json["content"])))})
        else:
            reply.json({"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]})

    gate = gate(silent, serving=SOLD, granted={"pr-a": 10**9})
    assert gate.ask({"messages": [{"role": "user", "content": "hello"}]}).status_code == 200
    line = gate.settled(1)[0]
    assert (line["prompt"], line["completion"], line.get("estimated", False)) == (len("<user>hello"), len("Hello"), False)
    assert line["amount"] == 11 * 1000 + 5 * 2000


def test_where_no_tokenizer_answers_a_whole_answer_is_estimated_and_said_so(gate):
    async def silent(request, reply):
        if request.path in {"/apply-template", "/tokenize"}:
            reply.json({"error": "not here"}, status=404)
        else:
            reply.json({"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello, you there"}, "finish_reason": "stop"}]})

    gate = gate(silent, serving=SOLD, granted={"pr-a": 10**9})
    assert gate.ask({"messages": [{"role": "user", "content": "hello"}]}).status_code == 200
    line = gate.settled(1)[0]
    assert line["estimated"] and line["completion"] == 4 and line["prompt"] > 0


def test_embeddings_keep_their_form_and_their_usage(gate):
    vector = base64.b64encode(struct.pack("<3f", 0.5, -1.0, 2.0)).decode()

    async def embeds(request, reply):
        assert request.path == "/v1/embeddings"
        assert request.json["encoding_format"] == "base64"
        reply.json(
            {
                "object": "list",
                "model": "m",
                "data": [{"object": "embedding", "index": 0, "embedding": vector}],
                "usage": {"prompt_tokens": 4, "total_tokens": 4},
            }
        )

    gate = gate(embeds)
    client = openai.OpenAI(base_url=f"{gate.url}/v1", api_key=gate.key, max_retries=0)
    assert client.embeddings.create(model="m", input=["one two"]).data[0].embedding == [0.5, -1.0, 2.0]
    line = gate.settled(1)[0]
    assert (line["prompt"], line.get("completion", 0)) == (4, 0)


def test_large_bodies_chunked_uploads_and_100_continue(gate):
    gate = gate(hello)
    image = "x" * (10 * 1024 * 1024)
    assert gate.ask({"messages": [{"role": "user", "content": image}]}).status_code == 200
    assert len(gate.scripts[0].seen[-1].body) > len(image)
    body = json.dumps({"model": "m", "messages": [{}]}).encode()
    chunked = httpx.post(f"{gate.url}/v1/chat/completions", content=iter([body[:5], body[5:]]), headers=gate.auth())
    assert chunked.status_code == 200
    with socket.create_connection(("127.0.0.1", gate.port)) as client:
        client.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gate.key}\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        )
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(body)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    with socket.create_connection(("127.0.0.1", gate.port)) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_pipelined_requests_are_answered_in_order_and_old_clients_get_no_chunks(gate):
    gate = gate(hello)
    body = json.dumps({"model": "m", "stream": True, "messages": [{}]}).encode()
    one = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gate.key}\r\nx-request-id: %d\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", gate.port)) as client:
        client.sendall(b"".join(one % n + body for n in range(12)))
        got = b""
        while got.count(b"0\r\n\r\n") < 12:
            got += client.recv(65536)
    ids = [int(part.split(b"\r\n")[0]) for part in got.split(b"x-request-id: ")[1:]]
    assert ids == list(range(12))
    with socket.create_connection(("127.0.0.1", gate.port)) as client:
        client.sendall((one % 1).replace(b"HTTP/1.1", b"HTTP/1.0") + body)
        got = b""
        while data := client.recv(65536):
            got += data
    assert b"transfer-encoding" not in got
    assert got.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\nhello",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1e3\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost : x\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n",
        b"GET /health HTTP/1.1\r\na: " + b"x" * 100_000,
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused_and_nothing_is_smuggled(gate, raw):
    gate = gate(hello)
    with socket.create_connection(("127.0.0.1", gate.port), timeout=15) as client:
        client.sendall(raw)
        got = b""
        while data := client.recv(65536):
            got += data
    assert got[9:10] in {b"4", b"5"}, got[:200]
    assert got.count(b"\r\n\r\n") == 1, "one answer to one thing"
    assert not gate.scripts[0].seen
    assert gate.ask().status_code == 200


def test_headers_of_a_client_end_where_they_should(gate):
    """What looks like a header's end inside a value never reaches a replica as one."""
    gate = gate(hello)
    body = b'{"model":"m","messages":[{}]}'
    with socket.create_connection(("127.0.0.1", gate.port)) as client:
        client.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gate.key}\r\nconnection: x-drop\r\nte: trailers\r\nproxy-authorization: secret\r\n"
                       f"x-a: one\r\n\ttwo\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)  # fmt: skip
        status = client.recv(100).split(b" ")[1]
    if status == b"200":
        seen = gate.scripts[0].seen[-1].headers
        assert not {"te", "proxy-authorization", "connection"} & set(seen)


def test_other_paths_go_through_as_they_are_and_websockets_too(gate):
    import hashlib

    async def anything(request, reply):
        if request.headers.get("upgrade") == "websocket":
            accept = base64.b64encode(
                hashlib.sha1((request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
            ).decode()
            reply.writer.write(
                f"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n".encode()
            )
            reply.writer.write(b"\x81\x05hello")
            await reply.writer.drain()
            await asyncio.sleep(20)
        else:
            reply.json({"method": request.method, "path": request.path, "body": request.body.decode()}, 201)

    gate = gate(anything)
    answer = httpx.put(f"{gate.url}/endpoints/mine/files/a%20b?x=1&y=2", content=b"data", headers=gate.auth())
    assert (answer.status_code, answer.json()) == (201, {"method": "PUT", "path": "/files/a%20b?x=1&y=2", "body": "data"})
    assert httpx.get(f"{gate.url}/endpoints/mine/files").status_code == 401
    assert httpx.get(f"{gate.url}/endpoints/other/files", headers=gate.auth()).status_code == 404
    from websockets.sync.client import connect

    with connect(f"ws://127.0.0.1:{gate.port}/endpoints/mine/live", additional_headers=gate.auth()) as live:
        assert live.recv() == "hello"
    wait(lambda: gate.scripts[0].closed, 12)


def test_a_head_alone_is_an_answer_and_the_connection_goes_on(gate):
    async def play(request, reply):
        if request.method == "HEAD":
            reply.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\nx-kind: file\r\n\r\n")
        else:
            reply.json({"method": request.method})

    gate = gate(play)
    with httpx.Client(base_url=f"{gate.url}/endpoints/mine", headers=gate.auth(), timeout=3) as client:
        for _ in range(2):
            answer = client.head("/file")
            assert (answer.status_code, answer.headers["content-length"], answer.headers["x-kind"]) == (200, "1000", "file")
            assert client.get("/file").json() == {"method": "GET"}


def test_a_gateway_that_was_killed_bills_what_it_had_delivered(gate, tmp_path):
    async def lasts(request, reply):
        reply.stream()
        for n in range(400):
            await reply.event(delta(f"{n} "))
            await asyncio.sleep(0.01)

    gate = gate(lasts, serving=SOLD, granted={"pr-a": 10**9})
    with httpx.stream(
        "POST",
        f"{gate.url}/v1/chat/completions",
        json={"model": "m", "stream": True, "messages": [{}]},
        headers=gate.auth() | {"x-request-id": "mine"},
        timeout=20,
    ) as answer:
        got = 0
        try:
            for line in answer.iter_lines():
                got += line.startswith("data:")
                if got == 250:
                    gate.kill()
        except httpx.TransportError:
            pass
    gate.start()
    line = gate.settled(1)[0]
    assert (line["request_id"], line["cut"], line["estimated"]) == ("mine", True, True)
    assert got - 130 <= line["completion"] <= got + 10, "at most a second of it is not billed"


def test_a_gateway_told_to_end_lets_what_is_under_way_finish(gate):
    async def lasts(request, reply):
        reply.stream()
        for n in range(30):
            await reply.event(delta(f"{n} "))
            await asyncio.sleep(0.02)
        await reply.event(b"[DONE]")
        reply.end()

    gate = gate(lasts)
    with httpx.stream(
        "POST", f"{gate.url}/v1/chat/completions", json={"model": "m", "stream": True, "messages": [{}]}, headers=gate.auth(), timeout=20
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        gate.process.terminate()
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert gate.process.wait(20) == 0


def test_slow_clients_lose_their_connection_and_nobody_elses(gate):
    gate = gate(hello)
    with socket.create_connection(("127.0.0.1", gate.port)) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        assert gate.ask().status_code == 200
        slow.settimeout(15)
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def wait(done, limit_s=5):
    limit = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < limit
        time.sleep(0.002)
