"""Feeds are looked at in turn while this server leads. One that is lost changes nothing: what it said holds until its end, and then the contract and the tariff count."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx
import msgspec

from headframe.model.errors import BadRequest, HeadframeError
from headframe.model.power_api import FeedView
from headframe.server.decide import decide
from headframe.server.desk import Desk
from headframe.server.feeds_file import Feed, commands
from headframe.server.lead import Leadership

LOOK_S, ANSWER_S, BYTES_MAX = 1.0, 20.0, 8 * 1024 * 1024
_log = logging.getLogger("headframe")
Fetch = Callable[[Feed], Awaitable[bytes]]


class Feeds:
    """What each feed said last, and when. `refused` is told of each answer that could not be taken."""

    def __init__(self, desk: Desk, leadership: Leadership, feeds: Sequence[Feed], refused: Callable[[], None], fetch: Fetch | None = None) -> None:
        self._desk, self._leadership, self._refused, self._fetch = desk, leadership, refused, fetch or fetched
        self._feeds = tuple(feeds)
        self._due: dict[str, int] = dict.fromkeys((feed.name for feed in feeds), 0)
        self._seen: dict[str, FeedView] = {
            feed.name: FeedView(name=feed.name, form=feed.form, url=plain_url(feed.url), every_s=feed.every_s) for feed in feeds
        }

    def views(self) -> tuple[FeedView, ...]:
        """How each feed fares, by name."""
        return tuple(self._seen[name] for name in sorted(self._seen))

    async def run(self) -> None:
        """For ever."""
        while True:
            if self._leadership.epoch is not None:
                await self.once()
            await asyncio.sleep(LOOK_S)

    async def once(self) -> None:
        """Look at those whose time has come."""
        now_ms = self._desk.clock_ms()
        due = [feed for feed in self._feeds if self._due[feed.name] <= now_ms]
        self._due.update((feed.name, now_ms + feed.every_s * 1000) for feed in due)
        await asyncio.gather(*map(self._look, due))

    async def _look(self, feed: Feed) -> None:
        why, before = "", self._seen[feed.name]
        try:
            body = await self._fetch(feed)
            try:
                for command in commands(feed, body, self._desk.world, self._desk.clock_ms()):
                    await self._desk.write(lambda world, now_ms, command=command: decide(world, command, now_ms), self._leadership.epoch)
            except HeadframeError:
                self._refused()
                raise
        except (HeadframeError, httpx.HTTPError, OSError, ValueError) as error:
            why = (error.detail if isinstance(error, HeadframeError) else f"{type(error).__name__}: {error}")[:200]
        now_ms = self._desk.clock_ms()
        self._seen[feed.name] = msgspec.structs.replace(before, looked_ms=now_ms, good_ms=before.good_ms if why else now_ms, why=why)
        if why and why != before.why:
            _log.warning("feed %s: %s; what it said before holds until its end", feed.name, why)
        elif before.why and not why:
            _log.info("feed %s is heard again", feed.name)


async def fetched(feed: Feed) -> bytes:
    """What stands at a feed's address. Redirects are not followed: they would take the token elsewhere."""
    if feed.url.startswith("file:"):
        return await asyncio.to_thread(_read, Path(url2pathname(urlsplit(feed.url).path)))
    token = (await asyncio.to_thread(_read, Path(feed.token_file))).decode().strip() if feed.token_file else ""
    headers: Mapping[str, str] = {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    async with httpx.AsyncClient(timeout=ANSWER_S) as client, client.stream("GET", feed.url, headers=headers) as answer:
        if answer.status_code != httpx.codes.OK:
            raise BadRequest(f"{plain_url(feed.url)} answers {answer.status_code}", "look at the address, and at its token")
        body = bytearray()
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > BYTES_MAX:
                raise BadRequest(f"{plain_url(feed.url)} says more than {BYTES_MAX >> 20} MiB", "ask it for less")
        return bytes(body)


def plain_url(url: str) -> str:
    """An address without what may be secret in it: user, password, query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(BYTES_MAX + 1)[:BYTES_MAX]
