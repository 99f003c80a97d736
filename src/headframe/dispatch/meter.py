"""What a meter counts for a demand charge: the mean of each interval of the clock, not the moment's highest. Pure."""

import msgspec

LOST_MS = 300_000
"""After so long without a look nothing is known of what was drawn: the interval begins anew."""


class Mean(msgspec.Struct, frozen=True, kw_only=True):
    """The mean (W) of one interval that is over."""

    start_ms: int
    watts: float


class Means:
    """Means over intervals of `length_ms` since 1970 began, as meters keep them, of what was drawn at each look."""

    def __init__(self, length_ms: int) -> None:
        self._length, self._watt_ms, self._counted_ms = length_ms, 0.0, 0
        self._at_ms, self._watts = -LOST_MS * 10, 0.0

    def heard(self, at_ms: int, watts: float) -> list[Mean]:
        """Note what is drawn from now on; the intervals that ended meanwhile, first one first. Of an interval that was only seen in part the mean of that part counts."""
        ended: list[Mean] = []
        if not 0 <= at_ms - self._at_ms <= LOST_MS:
            self._watt_ms, self._counted_ms = 0.0, 0
        else:
            while (border := (self._at_ms // self._length + 1) * self._length) <= at_ms:
                self._count(border - self._at_ms)
                ended.append(Mean(start_ms=border - self._length, watts=self._watt_ms / self._counted_ms))
                self._at_ms, self._watt_ms, self._counted_ms = border, 0.0, 0
            self._count(at_ms - self._at_ms)
        self._at_ms, self._watts = at_ms, watts
        return ended

    def _count(self, length_ms: int) -> None:
        self._watt_ms += self._watts * length_ms
        self._counted_ms += length_ms
