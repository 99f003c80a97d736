"""Shells and ports of running work, as WebSockets."""

import ssl
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

__all__ = ["OPTIONS", "ConnectionClosed", "Refused", "open_exec", "open_forward", "socket_url"]
OPTIONS: dict[str, Any] = {"open_timeout": 15.0, "max_size": 1024 * 1024, "compression": None, "proxy": None}


class Server(Protocol):
    """Which server, and the key."""

    @property
    def url(self) -> str:
        """Its address."""
        ...

    @property
    def key(self) -> str:
        """The key."""
        ...

    @property
    def ca(self) -> str:
        """A certificate to trust, or nothing."""
        ...


class Refused(Exception):
    """What the server says instead, and what would help."""

    def __init__(self, detail: str, next_step: str = "") -> None:
        super().__init__(detail)
        self.next_step = next_step


def open_exec(server: Server, name: str, command: Sequence[str], rows: int, columns: int, term: str) -> ClientConnection:
    """A command beside running work. Raises Refused."""
    asked = [("rows", rows), ("columns", columns), ("term", term), *(("arg", word) for word in command)]
    return _open(server, f"/v1/workloads/{quote(name, safe='')}/exec?{urlencode(asked)}")


def open_forward(server: Server, name: str, port: int) -> ClientConnection:
    """A connection to a port at which running work listens. Raises Refused."""
    return _open(server, f"/v1/workloads/{quote(name, safe='')}/forward?port={port}")


def socket_url(url: str, path: str) -> str:
    """The same server's address for WebSockets."""
    return "ws" + url.removeprefix("http") + path


def _open(server: Server, path: str) -> ClientConnection:
    secure = server.url.startswith("https")
    context = ssl.create_default_context(cafile=server.ca or None) if secure else None
    try:
        return connect(socket_url(server.url, path), additional_headers={"Authorization": f"Bearer {server.key}"}, ssl=context, **OPTIONS)
    except InvalidStatus as error:
        status = error.response.status_code
        raise Refused(f"the server refused ({status})", "is the key of scope member, and the name right? `headframe ps`") from None
    except (OSError, InvalidHandshake, InvalidURI, TimeoutError) as error:
        raise Refused(f"no Headframe server answers at {server.url}: {error}", "is it running? `headframe up` starts one") from None
