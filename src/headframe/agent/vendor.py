"""What a vendor's library has to answer of its cards: the seam that NVIDIA's and AMD's stand behind as siblings."""

from collections.abc import Sequence
from typing import Any, Protocol

from headframe.agent.scrub import Library
from headframe.model.health import Inventory, Sample


class Gone(Exception):
    """The card is lost: nothing else it says counts."""


class Vendor(Protocol):
    """One vendor's cards while its library is open, by their number there. Whatever a card can't answer stays unknown; one that is lost raises Gone."""

    name: str
    library: Library

    def count(self) -> int:
        """How many there are, lost ones included."""
        ...

    def uuid(self, number: int) -> str:
        """What the card is known by, on any machine."""
        ...

    def inventory(self, number: int) -> Inventory:
        """What it says of itself at rest."""
        ...

    def placed(self, number: int) -> dict[str, Any]:
        """Its `pci_bus`, `pcie_width` and `sharing`, where it says them."""
        ...

    def sample(self, number: int, gpu_id: str, at_ms: int, *, slow: bool) -> Sample:
        """One reading, with `slow` also of what changes seldom; a lost card is one that is not `present`."""
        ...

    def processes(self, number: int) -> Sequence[int]:
        """The processes on it, by their numbers, lowest first."""
        ...

    def used_mib(self, number: int) -> int:
        """How much of its memory is in use."""
        ...

    def stock(self, number: int) -> None:
        """Set its clocks as the maker did, as far as this process may."""
        ...

    def off_stock(self, number: int) -> str:
        """Which clock is not as the maker set it, "" where none is known to be."""
        ...

    def reach(self, one: int, other: int) -> bool:
        """Whether a card reads another's memory directly."""
        ...
