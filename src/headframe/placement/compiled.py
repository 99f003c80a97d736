"""The kernels as machine code, or by NumPy.

Numba is imported only when `compiled` is first asked for: it takes a second and 100 MB, which a small fleet has no use for.
Machine code is kept beside the source (or in NUMBA_CACHE_DIR), so only the first start after an installation compiles.
"""

import hashlib
import types
from collections.abc import Callable
from functools import cache
from typing import Protocol

from headframe.placement import kernels, slots, vectors
from headframe.placement.kernels import Arrays, Ints, Members, Scores, Shapes, Slots

SEEN_AT_ONCE = ("refresh", "cheapest")
"""What `vectors.py` has in place of `slots.py`."""


class Code(Protocol):
    """The functions that `Index` calls."""

    arrays: Callable[[Slots, Members, Shapes, Scores, Ints], Arrays]
    place: Callable[[int, Arrays], int]
    put: Callable[[int, int, Arrays], None]
    move: Callable[[int, Ints, Arrays], None]
    refresh: Callable[[int, Slots, Shapes, Scores], None]
    reprice: Callable[[Scores], None]
    account: Callable[[Ints, int, Scores], None]
    stranded: Callable[[Ints, Scores], float]


@cache
def plain() -> Code:
    """The kernels without machine code: what looks at many states by NumPy, the rest as Python runs it. Ready at once, the same answers."""
    space: dict[str, object] = {**vars(kernels), **vars(slots), **{name: getattr(vectors, name) for name in SEEN_AT_ONCE}}
    space |= {name: types.FunctionType(f.__code__, space, name, f.__defaults__) for name, f in _own(slots).items() if name not in SEEN_AT_ONCE}
    space["arrays"] = Arrays
    return types.SimpleNamespace(**space)  # pyright: ignore[reportReturnType]


@cache
def compiled() -> Code:
    """The kernels as machine code."""
    import numba

    from headframe.placement.boxed import boxed

    functions = {**_own(kernels), **_own(slots)}
    # Numba looks for changes in a function's own file only, but machine code holds what it calls too: name the version.
    version = hashlib.sha256(b"".join(f.__code__.co_code + repr(f.__code__.co_consts).encode() for f in functions.values())).hexdigest()[:12]
    space: dict[str, object] = {**vars(kernels), **vars(slots)}
    for name, function in functions.items():
        fresh = types.FunctionType(function.__code__, space, name, function.__defaults__)
        fresh.__qualname__ = f"{name}_{version}"
        space[name] = numba.njit(cache=True)(fresh)
    space["arrays"] = boxed
    return types.SimpleNamespace(**space)  # pyright: ignore[reportReturnType]


def _own(module: types.ModuleType) -> dict[str, types.FunctionType]:
    found = vars(module).items()
    return {name: value for name, value in found if isinstance(value, types.FunctionType) and value.__module__ == module.__name__}
