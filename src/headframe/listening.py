"""Where processes of ours listen, and how they are reached there."""

import socket
from urllib.parse import urlsplit

from headframe.model.errors import Conflicting

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def url_at(host: str, port: int, *, secure: bool) -> str:
    """How clients write it."""
    return f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def is_web_address(url: str) -> bool:
    """Whether it has the form of an address that is reached by HTTP."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0 and url.isascii() and url.isprintable()
    except ValueError:  # no port, or no address
        return False


def check_exposure(host: str, *, secure: bool, otherwise: str) -> None:
    """Nothing leaves this machine in the clear: raises Conflicting, with what to do `otherwise`, for a host that others reach without TLS."""
    if host not in LOOPBACK and not secure:
        raise Conflicting(f"{host} is reachable from other machines, and keys would travel unencrypted", otherwise)


def bound(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """The address, taken; `shared` with others that say so, too. Raises Conflicting where it can't be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off; without, each answer waits 40 ms for an acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise Conflicting(f"{host}:{port} can't be bound: {error.strerror}", "choose another --host or --port") from None
    return listening
