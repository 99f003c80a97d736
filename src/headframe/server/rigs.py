"""Machines that an inventory lists: they are awaited, and what joins is compared with what was listed. Pure."""

import re
from collections.abc import Iterator, Sequence

import msgspec

from headframe.data import text
from headframe.health.catalogue import catalogue, claim
from headframe.health.xid import slot
from headframe.model.command import ListRigs
from headframe.model.errors import BadRequest
from headframe.model.event import Draft, Kind
from headframe.model.fleet import Gpu, Node, Rig, RigCard
from headframe.model.health import Inventory
from headframe.model.ids import rig_id
from headframe.model.units import counted
from headframe.model.world import World

RIGS_MAX, CARDS_MAX, TEXT_MAX, SAID_MAX = 20_000, 64, 200, 6
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")


def good(rigs: Sequence[Rig]) -> None:
    """BadRequest with the first thing that can't be, before anything is kept."""
    if len(rigs) > RIGS_MAX or len({rig.name for rig in rigs}) < len(rigs):
        raise BadRequest(f"at most {RIGS_MAX:,} machines are listed at once, and each once")
    for rig in rigs:
        if not _NAME.fullmatch(rig.name) or rig.id != rig_id(rig.name) or rig.node_id:
            raise BadRequest(f"{rig.name[:63]!r} is no machine's name: 1 to 63 letters, digits, dots, dashes or underscores")
        if (
            len(rig.cards) > CARDS_MAX
            or rig.memory_mib < 0
            or any(card.memory_mib < 0 or card.index < 0 or card.power_limit_w < 0 for card in rig.cards)
        ):
            raise BadRequest(f"{rig.name}: at most {CARDS_MAX} cards, and no number below 0")
        for row in (rig, *rig.cards):
            texts = [getattr(row, name) for name in row.__struct_fields__]
            if any(isinstance(each, str) and (len(each) > TEXT_MAX or (each and not each.isprintable())) for each in texts):
                raise BadRequest(f"{rig.name}: a text is at most {TEXT_MAX} printable characters")


def listed(world: World, command: ListRigs, now_ms: int) -> Iterator[Draft]:
    """Each machine that is new or listed otherwise than before; one that has joined stays joined."""
    good(command.rigs)
    for rig in command.rigs:
        known = world.rigs.get(rig.id)
        after = msgspec.structs.replace(rig, created_ms=known.created_ms if known else now_ms, node_id=known.node_id if known else "")
        if after != known:
            at = f" in {rig.rack}" if rig.rack else ""
            yield Draft(kind=Kind.RIG_LISTED, subject=rig.id, text=f"{rig.name}: awaited{at} with {counted(len(rig.cards), 'card')}", rows=(after,))


def awaited(world: World, node: Node, macs: Sequence[str]) -> Rig | None:
    """Which of the listed machines this is: by a port's address first, else by name."""
    free = [rig for rig in world.rigs.values() if rig.node_id in {"", node.id}]
    by_mac = (rig for rig in free if rig.mac and rig.mac in macs)
    return next(by_mac, None) or next((rig for rig in free if rig.name == node.name), None)


def arrived(world: World, rig: Rig, node: Node, gpus: Sequence[Gpu]) -> Draft:
    """It is here: what is otherwise than listed is told."""
    del world
    said = differences(rig, gpus)
    more = f" and {len(said) - SAID_MAX} more" if len(said) > SAID_MAX else ""
    text_ = f"{node.name}: as listed" if not said else f"{node.name}: otherwise than listed: {'; '.join(said[:SAID_MAX])}{more}"
    return Draft(kind=Kind.RIG_LISTED, subject=node.id, text=text_, rows=(msgspec.structs.replace(rig, node_id=node.id),))


def differences(rig: Rig, gpus: Sequence[Gpu]) -> list[str]:
    """What was listed and is not there, is there and was not listed, or is another than listed; cards are compared by their place on the bus."""
    found = {slot(gpu.pci_bus): gpu for gpu in gpus}
    said: list[str] = []
    places = {slot(card.bus): card for card in rig.cards if card.bus}
    if len(places) < len(rig.cards):
        return [f"{counted(len(rig.cards), 'card')} listed, {len(gpus)} found"] if len(rig.cards) != len(gpus) else []
    for place in sorted(places.keys() | found.keys()):
        said += _difference(place, places.get(place), found.get(place))
    return said


def _difference(place: str, card: RigCard | None, gpu: Gpu | None) -> list[str]:
    if gpu is None:
        return [f"no {card.model} at {place}"] if card else []
    if card is None:
        return [f"a {gpu.model} at {place} that was not listed"]
    said = [f"{gpu.model} at {place}, not {card.model}"] if _model(gpu.model, gpu.memory_mib) != _model(card.model, card.memory_mib) else []
    if card.vbios and gpu.vbios and card.vbios.upper() != gpu.vbios.upper():
        said.append(f"VBIOS {gpu.vbios} at {place}, not {card.vbios}")
    return said


def _model(name: str, memory_mib: int) -> str:
    """The catalogue's name for a card, or its own."""
    known = claim(catalogue(text("gpus.csv")), Inventory(model=name, memory_mib=memory_mib)).model
    return known.name if known else name
