"""Counting tokens with the model's own tokenizer, where nobody said them: over `/tokenize`, which vLLM and llama.cpp's server have."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec

from headframe.gateway.replicas import Replica, Served
from headframe.gateway.speech import CHAT

COUNT_S = 5.0
Count = Callable[[], Awaitable[tuple[int, int] | None]]


async def hear(count: Count, heard: Callable[[tuple[int, int] | None], None]) -> None:
    """Count, and say what came of it."""
    heard(await count())


async def counted(served: Served, path: bytes, body: bytes, text: str) -> tuple[int, int] | None:
    """Tokens of a request's body and of what was answered; None where no replica that is ready can tell."""
    for replica in list(served.open):
        try:
            async with (
                asyncio.timeout(COUNT_S),
                httpx.AsyncClient(trust_env=False, headers={"authorization": f"Bearer {replica.key.decode()}"}) as http,
            ):
                asked: dict[str, Any] = msgspec.json.decode(body)
                prompt = (
                    await _prompt(http, _url(replica), asked) if path == CHAT else await _count(http, _url(replica), str(asked.get("prompt") or ""))
                )
                completion = await _count(http, _url(replica), text)
                if prompt is not None and completion is not None:
                    return prompt, completion
        except (httpx.HTTPError, TimeoutError, msgspec.DecodeError, OSError):
            continue
    return None


def _url(replica: Replica) -> str:
    return f"http://{replica.entry.host}:{replica.entry.port}"


async def _prompt(http: httpx.AsyncClient, url: str, asked: dict[str, Any]) -> int | None:
    """Of a conversation, as the model sees it: llama.cpp puts it together for us, vLLM takes it as it is."""
    made = await http.post(f"{url}/apply-template", json={"messages": asked["messages"]})
    if made.status_code == 200:
        return await _count(http, url, str(made.json().get("prompt", "")))
    told = await http.post(f"{url}/tokenize", json={"model": asked.get("model"), "messages": asked["messages"]})
    return _number(told)


async def _count(http: httpx.AsyncClient, url: str, text: str) -> int | None:
    told = await http.post(f"{url}/tokenize", json={"content": text, "prompt": text, "add_special": False, "add_special_tokens": False})
    return _number(told)


def _number(told: httpx.Response) -> int | None:
    if told.status_code != 200:
        return None
    said: Any = told.json()
    if isinstance(said.get("count"), int):
        return said["count"]
    return len(said["tokens"]) if isinstance(said.get("tokens"), list) else None
