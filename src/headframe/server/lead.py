"""Leadership: a lease row with an epoch, judged by its beat. A follower that sees the beat stand still for long enough, by its
own clock alone, takes over with a new epoch; no two machines' clocks are ever compared.
"""

from collections.abc import Callable

from headframe.model.errors import HeadframeError
from headframe.server.desk import Io
from headframe.store.base import Lease, Store

STALE_MS = 5_000
"""A beat that has not changed for this long is a leader that is gone (renewed every `RENEW_MS`)."""
RENEW_MS = 1_000


class Leadership:
    """Poll it every `RENEW_MS`; `epoch` is set while this server leads, as far as it knows. Commits know better."""

    def __init__(self, store: Store, holder: str, monotonic_ms: Callable[[], int], io: Io, *, alone: bool) -> None:
        self.epoch: int | None = None
        self._store = store
        self._holder = holder
        self._monotonic_ms = monotonic_ms
        self._io = io
        self._alone = alone
        self._seen: Lease | None = None
        self._since_ms = 0

    async def poll(self) -> int | None:
        """Renew, take over or wait; the epoch while leading, else None."""
        try:
            await self._io(self._poll)
        except HeadframeError:
            self.lose()  # whoever can't write can't lead
        return self.epoch

    async def resign(self) -> None:
        """Let another take over at once."""
        if self.epoch is not None and self._seen is not None:
            seen = self._seen
            await self._io(lambda: self._store.lead("", seen))
        self.lose()

    def lose(self) -> None:
        """Stop deciding; the lease shows later who leads."""
        self.epoch = None
        self._seen = None

    def _poll(self) -> None:
        lease = self._store.lease()
        if self._seen is None or lease != self._seen:
            self._since_ms = self._monotonic_ms()
        if self.epoch is not None and lease.epoch != self.epoch:
            self.epoch = None
        stale = self._monotonic_ms() - self._since_ms >= STALE_MS
        if self.epoch is not None or self._alone or not lease.holder or stale:
            taken = self._store.lead(self._holder, lease)
            self.epoch = taken.epoch if taken else None
            lease = taken or lease
        self._seen = lease
