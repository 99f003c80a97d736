"""All arrays of an index as one thing to machine code: unpacking forty-five of them took seven times as long as a placement itself."""

# Numba makes the members of what it registers, which its types do not say.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUntypedFunctionDecorator=false

from typing import Any

import numba
from numba.experimental import structref

from headframe.placement.kernels import Arrays, Ints, Members, Scores, Shapes, Slots


@structref.register
class _BoxType(numba.types.StructRef):
    pass


class _Box(structref.StructRefProxy):
    pass


structref.define_proxy(_Box, _BoxType, list(Arrays._fields))


@numba.njit(cache=True)
def boxed(slots: Slots, members: Members, shapes: Shapes, scores: Scores, out: Ints) -> Any:
    """The same as `Arrays`, which holds on to them."""
    return _Box(slots, members, shapes, scores, out)  # pyright: ignore[reportCallIssue]
