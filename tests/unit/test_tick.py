"""What the tick makes of what engines say, apart from what it decides."""

from types import SimpleNamespace

import msgspec

from headframe.engines.base import Sight
from headframe.model.states import AllocationState
from headframe.model.work import Observation
from headframe.server.tick import Tick
from support import NOW_MS, fleet, put, running


def test_what_starts_late_is_not_held_to_be_lost_once_it_is_seen_however_little_is_told():
    world, clock = fleet(nodes=1), [NOW_MS]
    workload, allocation = running(1, [0], 1)
    put(world, (workload, msgspec.structs.replace(allocation, state=AllocationState.GRANTED)))
    key = allocation.id
    tick = Tick(SimpleNamespace(world=world, listeners=[]), None, lambda: clock[0])
    assert set(tick._facts(Sight(nodes=("node-0",), observations=())).missing_since_ms) == {key}, "it waits for its room"
    clock[0] += 50_000
    seen = Observation(allocation_id=key, state=AllocationState.RUNNING, started_ms=clock[0], seen_ms=clock[0])
    assert tick._facts(Sight(nodes=("node-0",), observations=(seen,), complete=False)).missing_since_ms == {}
    assert tick._facts(Sight(nodes=("node-0",), observations=(), complete=False)).missing_since_ms == {}
