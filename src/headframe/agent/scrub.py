"""A card's memory, overwritten: all that can be had is filled with a pattern, read back in places, and zeroed, through the maker's own library."""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

MIB = 1 << 20
PATTERN = 0xA5C3_5A3C
CHUNK_BYTES, PLACES, PLACE_BYTES = 1 << 30, 16, 4096
OUT_OF_MEMORY = 2
"""The same number in CUDA and in HIP."""
_Call = Callable[..., int]


class Library(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls are called in a maker's library (CUDA's driver API, and HIP's twin of it)."""

    file: str
    init: str
    by_bus: str
    retain: str
    release: str
    current: str
    wait: str
    allocate: str
    free: str
    fill: str
    fetch: str


CUDA = Library(
    file="libcuda.so.1", init="cuInit", by_bus="cuDeviceGetByPCIBusId", retain="cuDevicePrimaryCtxRetain", release="cuDevicePrimaryCtxRelease_v2",
    current="cuCtxSetCurrent", wait="cuCtxSynchronize", allocate="cuMemAlloc_v2", free="cuMemFree_v2", fill="cuMemsetD32_v2", fetch="cuMemcpyDtoH_v2",
)  # fmt: skip
HIP = Library(
    file="libamdhip64.so", init="hipInit", by_bus="hipDeviceGetByPCIBusId", retain="hipDevicePrimaryCtxRetain", release="hipDevicePrimaryCtxRelease",
    current="hipCtxSetCurrent", wait="hipCtxSynchronize", allocate="hipMalloc", free="hipFree", fill="hipMemsetD32", fetch="hipMemcpyDtoH",
)  # fmt: skip


class CallFailed(Exception):
    """A call of the library failed."""


def scrubbed(library: Library, bus: str) -> str:
    """Why the memory of the card at that place on the bus could not be overwritten, "" if it was. Without the library nothing can have
    been left by it either.
    """
    try:
        loaded = ctypes.CDLL(library.file)
    except OSError:
        return ""
    try:
        return _overwritten(loaded, library, bus)
    except CallFailed as error:
        return str(error)


def _overwritten(loaded: Any, library: Library, bus: str) -> str:
    def call(name: str, *arguments: Any, allowed: int = 0) -> int:
        code = getattr(loaded, name)(*arguments)
        if code not in {0, allowed}:
            raise CallFailed(f"its memory could not be overwritten: {name} gave error {code}")
        return code

    device, context = ctypes.c_int(), ctypes.c_void_p()
    call(library.init, 0)
    call(library.by_bus, ctypes.byref(device), bus.encode())
    call(library.retain, ctypes.byref(context), device)
    try:
        call(library.current, context)
        blocks = list(_blocks(call, library))
        wrong = sum(_filled(call, library, *block) for block in blocks)
        for pointer, size in blocks:
            call(library.fill, pointer, 0, ctypes.c_size_t(size // 4))
        call(library.wait)
        for pointer, _ in blocks:
            call(library.free, pointer)
    finally:
        getattr(loaded, library.release)(device)
    return f"its memory gives back other than was written, in {wrong} of {PLACES * len(blocks)} places" if wrong else ""


def _blocks(call: _Call, library: Library) -> Iterator[tuple[ctypes.c_uint64, int]]:
    """All memory that can be had, in ever smaller pieces."""
    size = CHUNK_BYTES
    while size >= MIB:
        pointer = ctypes.c_uint64()
        if call(library.allocate, ctypes.byref(pointer), ctypes.c_size_t(size), allowed=OUT_OF_MEMORY) == 0:
            yield pointer, size
        else:
            size //= 2


def _filled(call: _Call, library: Library, pointer: ctypes.c_uint64, size: int) -> int:
    """In how many places a block, filled with the pattern, gives back something else."""
    call(library.fill, pointer, ctypes.c_uint(PATTERN), ctypes.c_size_t(size // 4))
    read, expected, wrong = ctypes.create_string_buffer(PLACE_BYTES), PATTERN.to_bytes(4, "little") * (PLACE_BYTES // 4), 0
    for place in range(PLACES):
        at = (size - PLACE_BYTES) * place // (PLACES - 1) // 4 * 4
        call(library.fetch, read, ctypes.c_uint64(pointer.value + at), ctypes.c_size_t(PLACE_BYTES))
        wrong += read.raw != expected
    return wrong
