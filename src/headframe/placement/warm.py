"""Machine code made ready before it is needed, so that no decision waits for a compiler."""

import numpy as np

from headframe.placement.compiled import Code, compiled
from headframe.placement.index import Index
from headframe.placement.kernels import MILLI
from headframe.placement.score import Demand, Wanted


def warmed() -> Code:
    """The kernels as machine code, compiled or read from the cache by now: takes a second, or ten after an installation."""
    row = np.array([[0, 0, 1000, 1, 0, 0, 0, 0, MILLI]], dtype=np.int64)
    wanted = Demand.of([Wanted(need=(1, 0, 0, 500, 1, 0), mask=(1,), scope="", often=1.0)])
    index = Index(row, np.zeros((1, 1), dtype=np.int64), wanted, code=compiled(), memo=1 << 10)
    shape = index.shape("warm", (1, 0, 0, 500, 1, 0), (1,), (0,))
    placed = index.place(shape)
    assert placed is not None
    index.costs(shape)
    index.put(shape, placed.node)
    compiled().stranded(row[0], index.scores)
    compiled().reprice(index.scores)
    return compiled()
