"""The desk: decisions become commits, refusals leave no trace, and what changes nothing wakes nobody."""

import asyncio

import pytest

from headframe.model.command import CreateProject, Found
from headframe.model.errors import NameTaken, Unavailable, VersionConflict
from headframe.server.decide import decide
from headframe.server.desk import Desk
from headframe.simulate.world import at_once
from headframe.store.memory import MemoryStore
from support import NOW_MS, key


def founded(store=None):
    desk = Desk(store or MemoryStore(), lambda: NOW_MS, at_once)
    desk.open()
    asyncio.run(write(desk, Found(site_name="x", key=key())))
    return desk


async def write(desk, command):
    return await desk.write(lambda world, now_ms: decide(world, command, now_ms))


def test_what_changes_nothing_wakes_nobody_and_is_not_committed():
    desk, heard = founded(), []
    desk.listeners.append(heard.append)
    before = desk.store.version()
    asyncio.run(desk.write(lambda _world, _now_ms: []))
    assert heard == []
    assert desk.store.version() == before


def test_a_refusal_in_a_batch_leaves_the_others_and_no_trace_of_itself():
    desk = founded()

    async def crowd():
        commands = [CreateProject(id=f"pr-{n}", name=f"name {n % 3}") for n in range(6)]
        return await asyncio.gather(*(write(desk, command) for command in commands), return_exceptions=True)

    answers = asyncio.run(crowd())
    assert [isinstance(answer, NameTaken) for answer in answers] == [False] * 3 + [True] * 3
    assert sorted(desk.world.projects) == ["pr-0", "pr-1", "pr-2"]
    assert desk.world.version == desk.store.version()


def test_two_desks_on_one_store_never_commit_on_an_old_version():
    first = founded()
    second = Desk(first.store, lambda: NOW_MS, at_once)
    second.open()
    for n in range(5):
        asyncio.run(write((first, second)[n % 2], CreateProject(id=f"pr-{n}", name=f"n{n}")))
    asyncio.run(first.catch_up())
    asyncio.run(second.catch_up())
    assert first.world.projects == second.world.projects
    with pytest.raises(NameTaken):
        asyncio.run(write(first, CreateProject(id="pr-9", name="n4")))


def test_a_store_that_fails_rolls_the_world_back_and_says_so():
    class Failing(MemoryStore):
        broken = False

        def commit(self, *args, **kwargs):
            if self.broken:
                raise Unavailable("away")
            super().commit(*args, **kwargs)

    store = Failing()
    desk = founded(store)
    store.broken = True
    with pytest.raises(Unavailable):
        asyncio.run(write(desk, CreateProject(id="pr-1", name="a")))
    assert desk.world.projects == {}
    store.broken = False
    asyncio.run(write(desk, CreateProject(id="pr-1", name="a")))
    assert list(desk.world.projects) == ["pr-1"]


def test_a_bug_in_one_decision_is_its_own_alone_and_leaves_no_trace():
    desk = founded()

    def buggy(world, now_ms):
        yield from decide(world, CreateProject(id="pr-bug", name="half"), now_ms)
        raise KeyError("a bug")

    async def crowd():
        return await asyncio.gather(desk.write(buggy), write(desk, CreateProject(id="pr-1", name="good")), desk.write(buggy), return_exceptions=True)

    answers = asyncio.run(crowd())
    assert [type(answer) for answer in answers] == [KeyError, list, KeyError]
    assert list(desk.world.projects) == ["pr-1"]
    assert desk.world.version == desk.store.version()


def test_a_store_that_always_conflicts_is_given_up_on():
    class Contended(MemoryStore):
        def commit(self, *args, **kwargs):
            raise VersionConflict("again")

    desk = Desk(Contended(), lambda: NOW_MS, at_once)
    with pytest.raises(Unavailable, match="too busy"):
        asyncio.run(write(desk, Found(site_name="x", key=key())))
