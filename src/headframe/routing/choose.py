"""Which replica answers: the one that is believed to hold most of the prompt's beginning in its cache, among those that are not busier than the others.

The belief is the gateway's own: it knows what it sent where. No tokenizer is needed, a block is some bytes of the request. Beside published rules this
one had the best of both, hits and evenness (see `benchmarks/bench_routing.py`).
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

BLOCK_BYTES, BLOCKS_MAX = 512, 64
OVER_MEAN, OVER = 1.25, 2
"""A replica takes no more than 1.25 times the mean, and two more."""
KNOWN_MAX = 200_000
"""Blocks remembered for one endpoint, at about 100 bytes each."""


class Replica(Protocol):
    """What is looked at."""

    in_flight: int
    bit: int


R = TypeVar("R", bound=Replica)


def blocks(body: bytes, salt: bytes) -> Sequence[int]:
    """The names of the beginnings of a prompt, one for each 512 bytes from `"messages"` (or `"prompt"`, or the body's start) on: each names all that comes before it, too.

    Python's own hash of bytes is SipHash under a secret of the process: nobody can aim at another's blocks, and it takes a quarter of BLAKE2's time.
    """
    start = body.find(b'"messages"')
    if start < 0:
        start = max(0, body.find(b'"prompt"'))
    count = min((len(body) - start) // BLOCK_BYTES, BLOCKS_MAX)
    last, found = hash(salt), list[int]()
    for at in range(start, start + count * BLOCK_BYTES, BLOCK_BYTES):
        last = hash((last, body[at : at + BLOCK_BYTES]))
        found.append(last)
    return found


class Beliefs:
    """Which replicas hold which blocks, one bit each; what was not used for longest is forgotten first."""

    def __init__(self, limit: int = KNOWN_MAX) -> None:
        self._holders: dict[int, int] = {}
        self._limit = limit

    def matched(self, prompt: Sequence[int], mask: int) -> tuple[int, int]:
        """How many blocks from the start on some replica of `mask` holds, and which replicas hold so many."""
        depth, best = 0, mask
        for block in prompt:
            holders = self._holders.get(block, 0) & best
            if not holders:
                break
            depth, best = depth + 1, holders
        return depth, best

    def learn(self, prompt: Sequence[int], bit: int) -> None:
        """That replica will hold these."""
        holders = self._holders
        for block in prompt:
            holders[block] = holders.pop(block, 0) | bit
        while len(holders) > self._limit:
            del holders[next(iter(holders))]

    def forget(self, bit: int) -> None:
        """That replica is gone, and its bit may be another's soon."""
        self._holders = {block: left for block, holders in self._holders.items() if (left := holders & ~bit)}


def choose(replicas: Sequence[R], beliefs: Beliefs, prompt: Sequence[int], turn: int) -> R | None:
    """The replica for a request, None where there is none. Among equals it is each one's `turn`."""
    if len(replicas) < 2:
        return replicas[0] if replicas else None
    able, loads = replicas, [replica.in_flight for replica in replicas]
    if prompt:
        bound = OVER_MEAN * (sum(loads) + 1) / len(replicas) + OVER
        able = [replica for replica in replicas if replica.in_flight <= bound]  # the least busy one always is
        mask = 0
        for replica in able:
            mask |= replica.bit
        _, best = beliefs.matched(prompt, mask)
        able = [replica for replica in able if replica.bit & best]
        loads = [replica.in_flight for replica in able]
    least = min(loads)
    tied = [replica for replica in able if replica.in_flight == least]
    return tied[turn % len(tied)]
