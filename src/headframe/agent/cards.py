"""This machine's cards, whoever made them: one seam, a sibling for each vendor behind it.

A card is numbered over all vendors, in the order of VENDORS; within one machine that is how people and the scheduler count them.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager

import msgspec

from headframe.agent import amd, nvml
from headframe.agent.vendor import Gone, Vendor

Opened = Callable[[], AbstractContextManager[Vendor | None]]
VENDORS: Sequence[Opened] = (nvml.opened, amd.opened)


class Card(msgspec.Struct, frozen=True):
    """A card's place: its number in the machine, its vendor, its number there."""

    index: int
    vendor: Vendor
    number: int

    def uuid(self) -> str:
        """What it is known by; raises Gone where it is lost, or does not say."""
        known = self.vendor.uuid(self.number)
        if not known:
            raise Gone("it does not say what it is")
        return known


@contextlib.contextmanager
def opened() -> Generator[tuple[Card, ...]]:
    """The cards of all vendors whose libraries are here; none where there is no driver."""
    with contextlib.ExitStack() as stack:
        there = [vendor for each in VENDORS if (vendor := stack.enter_context(each()))]
        yield tuple(_numbered(there))


def _numbered(vendors: Sequence[Vendor]) -> Iterator[Card]:
    index = 0
    for vendor in vendors:
        for number in range(vendor.count()):
            yield Card(index, vendor, number)
            index += 1


def identified(cards: Sequence[Card]) -> list[tuple[Card, str]]:
    """Those that say what they are known by, with that."""
    found: list[tuple[Card, str]] = []
    for card in cards:
        with contextlib.suppress(Gone):
            found.append((card, card.uuid()))
    return found
