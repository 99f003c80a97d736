"""Power limits as dispatch wants them, through the helper, which keeps them within each card's own bounds, reads them back and sets them back when it ends."""

import logging
from collections.abc import Mapping

from headframe.agent.helper import PowerLimit, ask
from headframe.model.ids import GpuId

_log = logging.getLogger("headframe")
_told: dict[str, str] = {}


def limit(watts: Mapping[GpuId, int]) -> dict[GpuId, str]:
    """Set each card's limit (W); what could not be set, by UUID, with the reason, each told once in the log."""
    failed: dict[GpuId, str] = {}
    for uuid in sorted(watts):
        done = ask(PowerLimit(gpu_id=uuid, watts=watts[uuid]))
        if done.error:
            failed[uuid] = done.error
            if _told.get(uuid) != done.error:
                _log.warning("the power limit of %s stays: %s", uuid, done.error)
        _told[uuid] = done.error
    return failed
