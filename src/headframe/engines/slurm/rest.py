"""The line to slurmrestd: tokens signed with the cluster's key, one connection pool, a limit on every wait."""

import asyncio
import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpcore
import msgspec

from headframe.engines.slurm.words import (
    DIALECTS,
    NOTHING_FOUND,
    OLD,
    Accounted,
    JobRequest,
    SlurmJob,
    SlurmNode,
    SlurmRefused,
    body,
    read_accounted,
    read_jobs,
    read_nodes,
    read_submitted,
    refused,
)
from headframe.model.engine import EngineSetup
from headframe.model.errors import Unavailable

T = TypeVar("T")
TOKEN_S = 1800
CONNECTIONS_MAX, IDLE_S = 16, 5.0
CONNECT_S, ANSWER_S = 3.0, 30.0
"""A controller under load answers late; one that is away does not take the connection."""
_WAITS = {"timeout": {"connect": CONNECT_S, "read": ANSWER_S, "write": ANSWER_S, "pool": ANSWER_S}}


class Pinged(msgspec.Struct, frozen=True, kw_only=True):
    """Slurm's release and whether its controller answers."""

    release: str
    up: bool


def token(key: bytes, user: str, now_s: int) -> str:
    """What Slurm takes for `user` (HS256 over iat, exp, sun: Slurm's documentation of JWT)."""

    def part(raw: bytes) -> bytes:
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    head = part(msgspec.json.encode({"alg": "HS256", "typ": "JWT"}))
    claims = part(msgspec.json.encode({"exp": now_s + TOKEN_S, "iat": now_s, "sun": user}))
    return (head + b"." + claims + b"." + part(hmac.new(key, head + b"." + claims, hashlib.sha256).digest())).decode()


class SlurmRest:
    """One cluster's slurmrestd. Raises Unavailable where nothing answers, SlurmRefused where the answer is no."""

    def __init__(self, setup: EngineSetup, clock_ms: Callable[[], int]) -> None:
        self._setup = setup
        self._clock_ms = clock_ms
        path = setup.url.removeprefix("unix:") if setup.url.startswith("unix:") else None
        self._url = "http://slurmrestd" if path else setup.url.rstrip("/")
        self._http = httpcore.AsyncConnectionPool(
            max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX, keepalive_expiry=IDLE_S, uds=path
        )
        self._tokens: dict[str, tuple[str, int]] = {}
        self.dialect = ""

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def negotiated(self) -> str:
        """The best dialect that both sides speak; SlurmRefused where there is none."""
        if not self.dialect:
            answer = await self._call("GET", "/openapi/v3")
            have = set(re.findall(r"v0\.0\.\d+", answer.decode("utf-8", "replace")))
            common = [each for each in DIALECTS if each in have]
            if not common:
                raise SlurmRefused(f"it speaks {', '.join(sorted(have)) or 'no version of the interface'}, Headframe speaks {', '.join(DIALECTS)}")
            self.dialect = common[0]
        return self.dialect

    async def ping(self) -> Pinged:
        """Whether the controller is there, and Slurm's release."""
        told = msgspec.json.decode(await self._slurm("GET", "ping/" if await self.negotiated() != OLD else "ping"))
        release = _deep(told, "meta", "Slurm", "release") or _deep(told, "meta", "slurm", "release") or ""
        pings = told.get("pings") or []
        up = any(str(each.get("ping", each.get("pinged", ""))).upper() in {"UP", "TRUE"} or each.get("responding") is True for each in pings)
        return Pinged(release=str(release), up=up)

    async def nodes(self) -> list[SlurmNode]:
        """All machines."""
        answer = await self._slurm("GET", "nodes" if await self.negotiated() == OLD else "nodes/")
        return await _understood(read_nodes, answer)

    async def jobs(self) -> list[SlurmJob]:
        """All jobs that the controller remembers."""
        answer = await self._slurm("GET", "jobs" if await self.negotiated() == OLD else "jobs/")
        return await _understood(read_jobs, answer)

    async def submit(self, request: JobRequest, user: str) -> int:
        """Start it; its number."""
        return read_submitted(await self._slurm("POST", "job/submit", body(request, await self.negotiated()), user))

    async def cancel(self, job_id: int, user: str) -> None:
        """End a job; one that is over already is no error."""
        try:
            await self._slurm("DELETE", f"job/{job_id}", None, user)
        except SlurmRefused as no:
            if "already" not in str(no).lower() and "invalid job id" not in str(no).lower():
                raise

    async def accounted(self, since_s: int) -> list[Accounted]:
        """The jobs in Slurm's accounting that began or ran since then."""
        dialect = await self.negotiated()
        path = f"/slurmdb/{dialect}/jobs" + ("" if dialect == OLD else "/")
        try:
            answer = await self._call("GET", f"{path}?start_time=uts{since_s}", None, self._setup.user)
        except SlurmRefused as no:
            if no.number == NOTHING_FOUND:
                return []
            raise
        return await _understood(read_accounted, answer)

    async def _slurm(self, method: str, what: str, said: Any = None, user: str = "") -> bytes:
        return await self._call(method, f"/slurm/{await self.negotiated()}/{what}", said, user or self._setup.user)

    async def _call(self, method: str, path: str, said: Any = None, user: str = "") -> bytes:
        who = user or self._setup.user
        headers: dict[bytes | str, bytes | str] = {
            "X-SLURM-USER-NAME": who,
            "X-SLURM-USER-TOKEN": self._token(who),
            "Content-Type": "application/json",
        }
        try:
            content = None if said is None else msgspec.json.encode(said)
            answer = await self._http.request(method, self._url + path, headers=headers, content=content, extensions=_WAITS)
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise Unavailable(f"slurmrestd at {self._setup.url} does not answer: {type(error).__name__}: {error}") from error
        if answer.status in {401, 502, 503, 504} and not answer.content:
            raise Unavailable(f"slurmrestd at {self._setup.url} answers HTTP {answer.status}")
        no = refused(answer.status, answer.content)
        if no is not None:
            raise Unavailable(f"Slurm's controller does not answer: {no}") if away(no) else no
        return answer.content

    def _token(self, user: str) -> str:
        known, until = self._tokens.get(user, ("", 0))
        now_s = self._clock_ms() // 1000
        if now_s > until - TOKEN_S / 2:
            try:
                known = token(Path(self._setup.key_file).read_bytes(), user, now_s)
            except OSError as error:
                raise Unavailable(f"the key of Slurm's tokens can't be read: {error}") from error
            self._tokens[user] = (known, now_s + TOKEN_S)
        return known


async def _understood(read: Callable[[bytes], T], answer: bytes) -> T:
    """Read off the loop; an answer that is not understood is none."""
    try:
        return await asyncio.to_thread(read, answer)
    except msgspec.DecodeError as error:
        raise Unavailable(f"Slurm's answer is not understood: {error}") from error


def away(no: SlurmRefused) -> bool:
    """Whether a refusal is slurmrestd's own, which can't reach slurmctld: that says nothing of the request."""
    words = str(no).lower()
    return any(
        sign in words
        for sign in ("unable to contact", "communication", "connection refused", "zero bytes", "timed out", "socket", "unable to connect")
    )


def _deep(told: Any, *names: str) -> Any:
    for name in names:
        told = told.get(name) if isinstance(told, dict) else None
    return told
