"""Which replica answers: the one that is believed to hold most of the prompt's beginning in its cache, among those that are not busier than the others.

The belief is the gateway's own: it knows what it sent where. No tokenizer is needed, a block is some bytes of the request. Beside published rules this
one had the best of both, hits and evenness (see `benchmarks/bench_routing.py`).
"""

from collections.abc import Sequence

BLOCK_BYTES, BLOCKS_MAX = 512, 64
OVER_MEAN, OVER = 1.25, 2
"""A replica takes no more than 1.25 times the mean, and two more."""
KNOWN_MAX = 200_000
"""Blocks remembered for one endpoint, at about 100 bytes each."""


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


def choose(loads: Sequence[int], bits: Sequence[int], beliefs: Beliefs, prompt: Sequence[int], turn: int) -> int:
    """The place of the replica that answers, of at least one. `loads` is how many requests each has under way, `bits` how beliefs name them. Among equals it is each one's `turn`."""
    if len(loads) == 1:
        return 0
    best = -1
    if prompt:
        bound, mask = OVER_MEAN * (sum(loads) + 1) / len(loads) + OVER, 0
        for place, load in enumerate(loads):
            if load <= bound:  # the least busy one always is
                mask |= bits[place]
        _, best = beliefs.matched(prompt, mask)
    able = [place for place, bit in enumerate(bits) if bit & best]
    least = min([loads[place] for place in able])
    tied = [place for place in able if loads[place] == least]
    return tied[turn % len(tied)]
