"""Power limits as dispatch wants them, through the helper, which keeps them within each card's own bounds, reads them back and sets them back when it ends."""

import logging
from collections.abc import Mapping

from headframe.agent.helper import PowerLimit, ask
from headframe.model.ids import GpuId

_log = logging.getLogger("headframe")
_told: dict[str, str] = {}


def limit(watts: Mapping[GpuId, int]) -> None:
    """Set each card's limit (W); why one could not be set is told once in the log."""
    for uuid in sorted(watts):
        done = ask(PowerLimit(gpu_id=uuid, watts=watts[uuid]))
        if done.error and _told.get(uuid) != done.error:
            _log.warning("the power limit of %s stays: %s", uuid, done.error)
        _told[uuid] = done.error
