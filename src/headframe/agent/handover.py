"""What lies between two holders of a card: whoever was there is gone, what they set is undone, what they left is overwritten; else it is fenced.

Done in a child (a wedged driver holds it, not us) before work gets whole cards. Processes of others and memory in use have to be gone within `WAIT_S`; clocks and
offsets that miners set go back to the maker's, power limits stay (they may be the operator's); all free memory is filled with a pattern, read back in places,
and zeroed, through the driver's own CUDA library. Shared cards and checks are left as they are.
"""

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import psutil

from headframe.agent.helper import StockClocks, ask, stock
from headframe.agent.nvml import opened, text

LIMIT_S, WAIT_S, LOOK_S = 15.0, 8.0, 0.25
LEFT_MIB = 1024
"""Used by no process: the driver's own, and a display's."""
MIB = 1 << 20
PATTERN = 0xA5C3_5A3C
CHUNK_BYTES, PLACES, PLACE_BYTES = 1 << 30, 16, 4096
CUDA_OUT_OF_MEMORY = 2


async def clean(cards: Sequence[str]) -> dict[str, str]:
    """Hand these cards over; what could not be made clean, by UUID, with the reason."""
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headframe.agent.handover", *cards, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL, env=env
    )
    try:
        said, _ = await asyncio.wait_for(child.communicate(), LIMIT_S)
        return msgspec.json.decode(said, type=dict[str, str])
    except TimeoutError:
        return dict.fromkeys(cards, f"its driver did not answer in {LIMIT_S:g} s")
    except msgspec.DecodeError:
        return dict.fromkeys(cards, f"its hand-over ended with {child.returncode}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()


def handed(cards: Sequence[str]) -> dict[str, str]:
    """The work of the child."""
    unclean: dict[str, str] = {}
    with opened() as nvml:
        if nvml is None:
            return dict.fromkeys(cards, "NVML does not answer")
        until = time.monotonic() + WAIT_S
        for uuid in cards:
            try:
                card = nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
                why = _held(nvml, card, until) or _set_back(nvml, card, uuid) or _scrubbed(text(nvml.nvmlDeviceGetPciInfo(card).busId))
            except nvml.NVMLError as error:
                why = f"NVML says: {error}"
            unclean |= {uuid: why} if why else {}
    return unclean


def _held(nvml: Any, card: Any, until: float) -> str:
    """Who is still there, or what is still in its memory."""
    while True:
        pids = sorted({each.pid for each in _processes(nvml, card)})
        used = nvml.nvmlDeviceGetMemoryInfo(card).used // MIB
        if not pids and used <= LEFT_MIB:
            return ""
        if time.monotonic() >= until:
            who = ", ".join(f"{pid} ({_name(pid)})" for pid in pids[:3])
            return f"process {who} is on it" if pids else f"{used} MiB of its memory are in use by nobody that is known"
        time.sleep(LOOK_S)


def _processes(nvml: Any, card: Any) -> Sequence[Any]:
    try:
        return nvml.nvmlDeviceGetComputeRunningProcesses(card)
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
            return ()
        raise


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "not of this machine's view"


def _set_back(nvml: Any, card: Any, uuid: str) -> str:
    """Clocks as the maker set them, by the helper where this process may not. What is still not as it should be is told."""
    stock(nvml, card)
    if _offset(nvml, card):
        ask(StockClocks(gpu_id=uuid))
    return _offset(nvml, card)


def _offset(nvml: Any, card: Any) -> str:
    for what, asks in (("core", "nvmlDeviceGetGpcClkVfOffset"), ("memory", "nvmlDeviceGetMemClkVfOffset")):
        with contextlib.suppress(nvml.NVMLError, AttributeError):
            left = getattr(nvml, asks)(card)
            if left:
                return f"its {what} clock is {left:+} MHz off, and only root may set it back: run `headframe agent helper` as root"
    return ""


class CudaError(Exception):
    """A call of the driver's library failed."""


def _scrubbed(bus: str) -> str:
    """Fill, read back, zero. Without the driver's CUDA library nothing can have been left by CUDA either."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    try:
        return _overwritten(cuda, bus)
    except CudaError as error:
        return str(error)


def _overwritten(cuda: Any, bus: str) -> str:
    def call(name: str, *arguments: Any, allowed: int = 0) -> int:
        code = getattr(cuda, name)(*arguments)
        if code not in {0, allowed}:
            raise CudaError(f"its memory could not be overwritten: {name} gave CUDA error {code}")
        return code

    device, context = ctypes.c_int(), ctypes.c_void_p()
    call("cuInit", 0)
    call("cuDeviceGetByPCIBusId", ctypes.byref(device), bus.encode())
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        call("cuCtxSetCurrent", context)
        blocks = list(_blocks(call))
        wrong = sum(_filled(call, *block) for block in blocks)
        for pointer, size in blocks:
            call("cuMemsetD32_v2", pointer, 0, ctypes.c_size_t(size // 4))
        call("cuCtxSynchronize")
        for pointer, _ in blocks:
            call("cuMemFree_v2", pointer)
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)
    return f"its memory gives back other than was written, in {wrong} of {PLACES * len(blocks)} places" if wrong else ""


def _blocks(call: Any) -> Iterator[tuple[ctypes.c_uint64, int]]:
    """All memory that can be had, in ever smaller pieces."""
    size = CHUNK_BYTES
    while size >= MIB:
        pointer = ctypes.c_uint64()
        if call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size), allowed=CUDA_OUT_OF_MEMORY) == 0:
            yield pointer, size
        else:
            size //= 2


def _filled(call: Any, pointer: ctypes.c_uint64, size: int) -> int:
    """In how many places a block, filled with the pattern, gives back something else."""
    call("cuMemsetD32_v2", pointer, ctypes.c_uint(PATTERN), ctypes.c_size_t(size // 4))
    read, expected, wrong = ctypes.create_string_buffer(PLACE_BYTES), PATTERN.to_bytes(4, "little") * (PLACE_BYTES // 4), 0
    for place in range(PLACES):
        at = (size - PLACE_BYTES) * place // (PLACES - 1) // 4 * 4
        call("cuMemcpyDtoH_v2", read, ctypes.c_uint64(pointer.value + at), ctypes.c_size_t(PLACE_BYTES))
        wrong += read.raw != expected
    return wrong


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(handed(sys.argv[1:])).decode())
