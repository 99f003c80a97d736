"""Machines that an inventory lists: they are awaited, and what joins is compared with what was listed. Pure."""

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
from headframe.model.ids import is_machine_name, rig_id
from headframe.model.units import counted
from headframe.model.world import World

RIGS_MAX, CARDS_MAX, TEXT_MAX, NUMBER_MAX, SAID_MAX = 20_000, 64, 200, 1 << 53, 6


def good(rigs: Sequence[Rig]) -> None:
    """BadRequest with the first thing that can't be, before anything is kept."""
    if len(rigs) > RIGS_MAX or len({rig.name for rig in rigs}) < len(rigs):
        raise BadRequest(f"at most {RIGS_MAX:,} machines are listed at once, and each once")
    for rig in rigs:
        if not is_machine_name(rig.name) or rig.id != rig_id(rig.name) or rig.node_id:
            raise BadRequest(f"{rig.name[:63]!r} is no machine's name: 1 to 63 letters, digits, dots, dashes or underscores")
        if len(rig.cards) > CARDS_MAX:
            raise BadRequest(f"{rig.name}: a machine has at most {CARDS_MAX} cards")
        for row in (rig, *rig.cards):
            plain(row, f"{rig.name}: ")


def plain(row: msgspec.Struct, where: str = "") -> None:
    """BadRequest where a text that others tell can't be shown, or a number can't be."""
    for name in row.__struct_fields__:
        value = getattr(row, name)
        if isinstance(value, str) and (len(value) > TEXT_MAX or not value.isprintable()):
            raise BadRequest(f"{where}{name} is at most {TEXT_MAX} printable characters")
        if isinstance(value, int) and not 0 <= value <= NUMBER_MAX:
            raise BadRequest(f"{where}{name} is out of range")


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


def arrived(rig: Rig, node: Node, gpus: Sequence[Gpu]) -> Draft:
    """It is here: what is otherwise than listed is told."""
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
