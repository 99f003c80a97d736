"""A machine's place in a fleet: which server, by which key, and what it was last told by whom. Kept in a directory of its own."""

import os
import ssl
import time
from pathlib import Path

import msgspec

from headframe.agent.probe import macs, probe
from headframe.client.agent import AgentClient, pinned_certificate, trusting
from headframe.files import write_private
from headframe.model.agent import Hello
from headframe.model.errors import Conflicting
from headframe.model.ids import NodeId, RackId, SiteId
from headframe.version import VERSION


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """What joining left behind; the file is readable by its owner alone."""

    url: str
    key: str
    node_id: NodeId
    name: str


def hello(data: Path, name: str = "") -> Hello:
    """This machine, as it is now."""
    found = probe(SiteId(""), RackId(""), data, time.time_ns() // 1_000_000)
    node = msgspec.structs.replace(found.node, name=name) if name else found.node
    return Hello(node=node, gpus=found.gpus, macs=macs(), version=VERSION)


def take(url: str, token: str, data: Path, *, name: str = "", pin: str = "", new_identity: bool = False) -> Seat:
    """Join; raises what the server refuses. The key is on disk before this returns."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if pin:
        write_private(data / "server.pem", pinned_certificate(url, pin).encode())
    else:
        (data / "server.pem").unlink(missing_ok=True)
    if new_identity:
        write_private(data / "machine-id", os.urandom(16).hex().encode())
    with AgentClient(url, token, verify=_trust(data)) as server:
        joined = server.join(hello(data, name))
    seat = Seat(url=url, key=joined.key, node_id=joined.node_id, name=joined.name)
    write_private(data / "seat.json", msgspec.json.encode(seat))
    (data / "epoch").unlink(missing_ok=True)
    return seat


def kept(data: Path) -> Seat:
    """The seat taken before; raises Conflicting where there is none."""
    try:
        return msgspec.json.decode((data / "seat.json").read_bytes(), type=Seat)
    except FileNotFoundError:
        raise Conflicting("this machine has not joined a server yet", "`headframe node add` on the operator's side prints the command") from None
    except (OSError, msgspec.DecodeError) as error:
        raise Conflicting(f"{data / 'seat.json'} can't be read: {error}", "join again") from None


def line(seat: Seat, data: Path) -> AgentClient:
    """The line to the server."""
    return AgentClient(seat.url, seat.key, verify=_trust(data))


def renew(data: Path, began_s: float, lease_ms: int) -> None:
    """Work may go on for so long, counted from when the server was last asked (CLOCK_BOOTTIME, which counts sleep too)."""
    write_private(data / "lease", f"{began_s + lease_ms / 1000:.3f}".encode(), durable=False)


def obeyed(data: Path, epoch: int) -> bool:
    """Whether the leader of this epoch may still give orders; a newer one is remembered before it is obeyed."""
    path = data / "epoch"
    known = int(path.read_bytes()) if path.exists() else 0
    if epoch > known:
        write_private(path, str(epoch).encode())
    return epoch >= known


def _trust(data: Path) -> bool | ssl.SSLContext:
    pem = data / "server.pem"
    return trusting(pem) if pem.exists() else True
