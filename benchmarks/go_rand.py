"""The generator of Go's math/rand, so that pods arrive here in the very order in which they arrived in the authors' own runs.

An additive lagged Fibonacci generator (Mitchell and Reeds), seeded by a linear congruence over a table that Go ships; `shuffle` is
Lemire's reduction. The table, in data/openb, is Go's: copyright 2009 The Go Authors, BSD 3-clause.
"""

import gzip
from pathlib import Path

TABLE = Path(__file__).parent / "data" / "openb" / "go_math_rand.txt.gz"
LENGTH, TAP = 607, 273
BITS_64, BITS_63 = (1 << 64) - 1, (1 << 63) - 1
INT32_MAX = (1 << 31) - 1


class GoRand:
    """As Go's `rand.New(rand.NewSource(seed))`."""

    def __init__(self, seed):
        with gzip.open(TABLE, "rt") as file:
            table = [int(line) & BITS_64 for line in file]
        x, self.state = seed % INT32_MAX or 89482311, []
        for i in range(-20, LENGTH):
            x = x * 48271 % INT32_MAX
            if i >= 0:
                high, x = x, x * 48271 % INT32_MAX
                middle, x = x, x * 48271 % INT32_MAX
                self.state.append((high << 40 ^ middle << 20 ^ x ^ table[i]) & BITS_64)
        self.tap, self.feed = 0, LENGTH - TAP

    def int63(self):
        self.tap, self.feed = (self.tap - 1) % LENGTH, (self.feed - 1) % LENGTH
        self.state[self.feed] = x = (self.state[self.feed] + self.state[self.tap]) & BITS_64
        return x & BITS_63

    def below(self, n):
        """As `Intn(n)`."""
        if n & (n - 1) == 0:
            return self.int63() >> 32 & (n - 1)
        most = INT32_MAX - (1 << 31) % n
        while (v := self.int63() >> 32) > most:
            pass
        return v % n

    def shuffle(self, items):
        """As `Shuffle` with a swap of two elements; in place."""
        for i in range(len(items) - 1, 0, -1):
            product = (self.int63() >> 31) * (i + 1)
            while product & 0xFFFFFFFF < (1 << 32) % (i + 1):
                product = (self.int63() >> 31) * (i + 1)
            j = product >> 32
            items[i], items[j] = items[j], items[i]
