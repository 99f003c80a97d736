"""The solver in a child process: a programme that hangs or eats memory costs a child, and the last feasible schedule stays.

The child reads one problem from its standard input and writes one answer; nothing of it outlives the call, so an idle server keeps no solver in memory.
"""

import asyncio
import contextlib
import os
import sys

import msgspec

from headframe.dispatch.plan import Basis, Schedule, Site, solved

DEADLINE_S = 30.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A problem, how long it may take, and where a like one stood."""

    site: Site
    limit_s: float
    start: Basis | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The schedule, None where none was found in time."""

    schedule: Schedule | None
    basis: Basis | None = None


async def solve(site: Site, start: Basis | None = None, deadline_s: float = DEADLINE_S) -> Answer:
    """Ask a child; no schedule where it does not answer by the deadline."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "headframe.server.solving",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        ask = Ask(site=site, limit_s=deadline_s * 0.8, start=start)
        said, _ = await asyncio.wait_for(child.communicate(msgspec.msgpack.encode(ask)), deadline_s)
        return msgspec.msgpack.decode(said, type=Answer)
    except (TimeoutError, msgspec.DecodeError):
        return Answer(schedule=None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def main() -> None:
    """The child's work. HiGHS greets on standard output, so the answer has a descriptor of its own."""
    answers = os.dup(1)
    os.dup2(2, 1)
    ask = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Ask)
    schedule, basis = solved(ask.site, ask.limit_s, ask.start)
    with os.fdopen(answers, "wb") as out:
        out.write(msgspec.msgpack.encode(Answer(schedule=schedule, basis=basis)))


if __name__ == "__main__":
    main()
