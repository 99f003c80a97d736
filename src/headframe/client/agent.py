"""What a machine that joined says to its server."""

import functools
import hashlib
import ssl
from pathlib import Path

import httpx
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake

from headframe.client.http import TIMEOUT_S, Client, Unreachable, good
from headframe.client.shells import OPTIONS, socket_url
from headframe.model.agent import Account, Heard, Hello, Joined, Lines, Orders


class AgentClient(Client):
    """One machine's end of the line."""

    def __init__(self, url: str, key: str, *, verify: bool | ssl.SSLContext = True) -> None:
        super().__init__(url, key, verify=verify)
        self._key, self._trust = key, verify

    @functools.cached_property
    def _held(self) -> httpx.AsyncClient:
        """For what is held open; who only joins needs none."""
        return httpx.AsyncClient(base_url=self.url, headers=self._http.headers, timeout=TIMEOUT_S, verify=self._trust, trust_env=False)

    @functools.cached_property
    def _context(self) -> ssl.SSLContext | None:
        """How lines are encrypted: read once, for it takes as long as opening one."""
        if not self.url.startswith("https"):
            return None
        return self._trust if isinstance(self._trust, ssl.SSLContext) else ssl.create_default_context()

    def join(self, hello: Hello) -> Joined:
        """Become one of the fleet; the token is used up."""
        return self._send("POST", "/v1/agent/join", Joined, hello)

    def report(self, account: Account) -> Heard:
        """Say what runs and what the cards say."""
        return self._send("POST", "/v1/agent/report", Heard, account)

    async def orders(self) -> Orders:
        """What to do; held open until there is something. No thread waits meanwhile, so that an agent ends when it is told to."""
        try:
            answer = await self._held.post("/v1/agent/orders")
        except httpx.TransportError as error:
            raise Unreachable(f"no Headframe server answers at {self.url}: {error}") from error
        return msgspec.json.decode(good(answer).content, type=Orders)

    def lines(self, lines: Lines) -> Heard:
        """Log lines that were asked for."""
        return self._send("POST", "/v1/agent/lines", Heard, lines)

    async def attach(self, number: int) -> ClientConnection:
        """A line of its own that the server asked for; raises Unreachable."""
        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            return await connect(socket_url(self.url, f"/v1/agent/attach/{number}"), additional_headers=headers, ssl=self._context, **OPTIONS)
        except (OSError, InvalidHandshake) as error:
            raise Unreachable(f"no Headframe server answers at {self.url}: {error}") from error

    def workdir(self, digest: str, target: Path) -> None:
        """Fetch a workdir that work here needs, whole or not at all; raises Unreachable where it is not what was asked for."""
        part, found = target.with_suffix(".part"), hashlib.sha256()
        try:
            with self._http.stream("GET", f"/v1/agent/workdirs/{digest}") as answer, part.open("wb") as file:
                for chunk in answer.iter_bytes():
                    found.update(chunk)
                    file.write(chunk)
            if answer.status_code != httpx.codes.OK or found.hexdigest() != digest:
                raise Unreachable(f"workdir {digest[:12]} did not come whole from {self.url}")
            part.rename(target)
        except httpx.TransportError as error:
            raise Unreachable(f"no Headframe server answers at {self.url}: {error}") from error
        finally:
            part.unlink(missing_ok=True)


def pinned_certificate(url: str, pin: str) -> str:
    """The certificate (PEM) of the server at `url`, where its SHA-256 is `pin`; raises Unreachable where it is not."""
    at = httpx.URL(url)
    try:
        pem = ssl.get_server_certificate((at.host, at.port or 443), timeout=10)
    except OSError as error:
        raise Unreachable(f"no Headframe server answers at {url}: {error}") from error
    if hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() != pin.lower():
        raise Unreachable(f"the certificate at {url} is not the one that was promised: something stands between, or the command is an old one")
    return pem


def trusting(pem: Path) -> ssl.SSLContext:
    """Trust just this certificate, by whatever address its server is reached."""
    context = ssl.create_default_context(cafile=str(pem))
    context.check_hostname = False
    return context
