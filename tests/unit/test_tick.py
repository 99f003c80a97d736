"""What the tick makes of what engines say, apart from what it decides."""

import asyncio
from types import SimpleNamespace

import msgspec
import pytest

from headframe.engines.base import Sight
from headframe.model.fleet import SLURM, Machine
from headframe.model.states import AllocationState
from headframe.model.work import Facts, Observation
from headframe.server.machines import machines
from headframe.server.tick import Tick
from support import NOW_MS, commit, fleet, gpu, node, put, running


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


def brought(n, **fields):
    return Machine(node=node(n, engine=SLURM, name=f"slurm-{n}"), gpus=(gpu(n, 0),), rack="A1", **fields)


def test_a_machine_that_an_engine_brings_is_looked_at_again_only_where_it_is_told_anew_or_was_not_committed():
    world, facts, broken = fleet(nodes=1), [], True

    async def write(decide, _epoch):
        if broken:
            raise ConnectionError
        commit(world, decide(world, NOW_MS))

    async def catch_up():
        pass

    async def observe():
        return Sight(nodes=(), observations=(), machines=told)

    told = (brought(1), brought(2))
    tick = Tick(SimpleNamespace(world=world, listeners=[], write=write, catch_up=catch_up), SimpleNamespace(observe=observe), lambda: NOW_MS)
    tick._facts = lambda sight, real=tick._facts: facts.append(real(sight)) or facts[-1]
    with pytest.raises(ConnectionError):
        asyncio.run(tick.run(1))
    broken = False
    for _ in range(2):
        asyncio.run(tick.run(1))
    told = (told[0], brought(2))
    asyncio.run(tick.run(1))
    assert [[each.node.name for each in each.machines] for each in facts] == [["slurm-1", "slurm-2"], ["slurm-1", "slurm-2"], [], ["slurm-2"]]


def test_machines_of_one_name_in_one_look_get_different_ones_and_share_the_rack_that_is_new():
    world = fleet(nodes=1)
    told = [msgspec.structs.replace(brought(n), node=node(n, engine=SLURM, name="gpu")) for n in (1, 2, 3)]
    for _ in range(2):
        commit(world, machines(world, Facts(machines=tuple(told)), NOW_MS))
        assert [world.nodes[f"node-{n}"].name for n in (1, 2, 3)] == ["gpu", "gpu-de-2", "gpu-de-3"]
        assert [rack.name for rack in world.racks.values()].count("A1") == 1
