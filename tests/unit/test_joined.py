"""Machines that joined, seen from the server: what they were asked for, and the lines that they open for it."""

import asyncio
import json

import pytest

from headframe.engines.carry import Gone, carry
from headframe.engines.joined import FRESH_MS, JoinedEngine
from headframe.model.agent import Account, Attach
from headframe.model.errors import Conflicting, Unavailable
from headframe.model.ids import NodeId
from headframe.model.shell import ShellAsk
from support import running

HOME, OTHER = NodeId("node-0"), NodeId("node-1")
ASK = ShellAsk(argv=("id",))


class Wire:
    """A machine's end of a line: what it says, and what it heard."""

    def __init__(self, *says):
        self.says, self.heard = asyncio.Queue(), []
        for each in says:
            self.says.put_nowait(each)

    async def hear(self):
        return await self.says.get()

    async def say(self, said):
        self.heard.append(said)


class Fleet:
    """An engine, two machines of which were just heard, and work on the first."""

    def __init__(self):
        self.now_ms = 1_000_000
        self.engine = JoinedEngine(lambda: self.now_ms, lambda _: (), lambda _: None)
        self.work, self.held = running(1, [0], 0)
        for node in (HOME, OTHER):
            self.engine.hear(node, Account(clock_ms=self.now_ms), lambda _: False)

    def shell(self):
        return asyncio.ensure_future(self.engine.shell(self.held, self.work, ASK))

    async def asked(self):
        [order] = await self.engine.orders(HOME, 1)
        assert isinstance(order, Attach)
        return order.number


def run(test):
    asyncio.run(asyncio.wait_for(test(Fleet()), 20))


def test_a_command_on_a_far_machine_is_carried_both_ways_to_its_end():
    async def test(fleet):
        waits = fleet.shell()
        line = Wire("{}")
        attached = asyncio.ensure_future(fleet.engine.attached(HOME, await fleet.asked(), line))
        user = Wire(b"typed", '{"resize":[40,120]}', '{"resize":[0,120]}', '{"signal":64}', "nonsense")
        carried = asyncio.ensure_future(carry(user, await waits))
        while len(line.heard) < 2:
            await asyncio.sleep(0)
        for said in (b"\x01hello", b"\x02oops", '{"code":7}'):
            line.says.put_nowait(said)
        await carried
        assert user.heard == [b"\x01hello", b"\x02oops", '{"code":7}']
        assert [said if isinstance(said, bytes) else json.loads(said) for said in line.heard] == [b"typed", {"resize": [40, 120]}]
        await attached  # the machine's line is let go of

    run(test)


def test_a_line_is_of_the_machine_that_was_asked_and_of_nobody_else_and_once():
    async def test(fleet):
        waits = fleet.shell()
        number = await fleet.asked()
        assert not fleet.engine.expects(OTHER, number)
        await fleet.engine.attached(OTHER, number, Wire('{"code":0}'))
        assert not waits.done()
        assert fleet.engine.expects(HOME, number)
        attached = asyncio.ensure_future(fleet.engine.attached(HOME, number, Wire("{}")))
        opened = await waits
        assert not fleet.engine.expects(HOME, number)
        opened.close()
        await attached

    run(test)


@pytest.mark.parametrize("said", [None, b"\x01early", "nonsense"])
def test_a_line_that_breaks_is_said_and_let_go_of(said):
    async def test(fleet):
        waits = fleet.shell()
        attached = asyncio.ensure_future(fleet.engine.attached(HOME, await fleet.asked(), Wire(said)))
        with pytest.raises(Unavailable, match="broke"):
            await waits
        await attached
        waits = fleet.shell()
        attached = asyncio.ensure_future(fleet.engine.attached(HOME, await fleet.asked(), Wire("{}", b"\x01some", None)))
        with pytest.raises(Unavailable, match="broke"):
            await carry(Wire(), await waits)
        await attached

    run(test)


def test_what_the_machine_refuses_is_refused_in_its_words():
    async def test(fleet):
        waits = fleet.shell()
        attached = asyncio.ensure_future(fleet.engine.attached(HOME, await fleet.asked(), Wire('{"error":"it does not run now","next":"look"}')))
        with pytest.raises(Conflicting, match="it does not run now"):
            await waits
        await attached

    run(test)


def test_whoever_leaves_before_the_line_is_there_leaves_none_open():
    async def test(fleet):
        waits = fleet.shell()
        number = await fleet.asked()
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        assert not fleet.engine.expects(HOME, number)
        await fleet.engine.attached(HOME, number, Wire("{}"))
        again = fleet.shell()
        attached = asyncio.ensure_future(fleet.engine.attached(HOME, await fleet.asked(), Wire()))  # it came, and says nothing yet
        await asyncio.sleep(0)
        again.cancel()
        await attached

    run(test)


def test_a_machine_that_was_not_heard_of_is_not_asked():
    async def test(fleet):
        fleet.now_ms += FRESH_MS
        with pytest.raises(Unavailable, match="has not been heard of"):
            await fleet.shell()

    run(test)


def test_whoever_leaves_a_far_shell_ends_it():
    async def test(fleet):
        class Left(Wire):
            async def say(self, said):
                raise Gone

        waits = fleet.shell()
        attached = asyncio.ensure_future(fleet.engine.attached(HOME, await fleet.asked(), Wire("{}", b"\x01more")))
        with pytest.raises(Gone):
            await carry(Left(), await waits)
        await attached

    run(test)
