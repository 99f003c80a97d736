"""The privileged helper: sets power limits and clocks of this machine's cards, within hard bounds, for the agent, which may not.

A process of root's on a Unix socket that one user may ask, a line of JSON each way. It knows three requests and no others, never goes above the
maker's own settings, reads back what it set, and on its way out sets power limits back to what they were before it came.
"""

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, assert_never

import msgspec

from headframe.agent.nvml import driver, stock
from headframe.files import write_private

SOCKET = Path("/run/headframe/helper.sock")
LINE_BYTES_MAX, ANSWER_S, ASK_S = 4096, 10.0, 12.0
CLOCK_LEAST_MHZ = 200
"""Below this no card works; a limit that low is a mistake."""
LENT_MOST_S = 600
_SM = 1


class PowerLimit(msgspec.Struct, frozen=True, kw_only=True, tag="power-limit"):
    """Draw at most so many watts: between the card's least and its maker's default; with `for_s` for so long only, unless it is asked for again."""

    gpu_id: str
    watts: int
    for_s: int = 0


class ClockLimit(msgspec.Struct, frozen=True, kw_only=True, tag="clock-limit"):
    """Run the processors no faster than this: between CLOCK_LEAST_MHZ and the card's own maximum."""

    gpu_id: str
    mhz: int


class StockClocks(msgspec.Struct, frozen=True, kw_only=True, tag="stock-clocks"):
    """No offsets and no locked clocks: as the maker set them."""

    gpu_id: str


Wish = PowerLimit | ClockLimit | StockClocks


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What the card says afterwards, or why nothing was done."""

    power_limit_w: int = 0
    error: str = ""


class Refused(Exception):
    """A wish outside the bounds, or one that the driver did not grant."""


class Helper:
    """Grants wishes of the user `uid` (and of its own). `kept` is where the limits it found are noted until they are set back."""

    def __init__(self, nvml: Any, kept: Path, uid: int) -> None:
        self._nvml = nvml
        self._kept = kept
        self._allowed = {uid, os.geteuid()}
        self._lock = asyncio.Lock()
        self._lent: dict[str, tuple[float, int]] = {}
        self._found_w: dict[str, int] = msgspec.json.decode(kept.read_bytes(), type=dict[str, int]) if kept.exists() else {}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of one peer."""
        try:
            line = await asyncio.wait_for(reader.readline(), ANSWER_S)
            done = await self._answered(line, _peer(writer.get_extra_info("socket")))
            writer.write(msgspec.json.encode(done) + b"\n")
            await writer.drain()
        except (TimeoutError, ValueError, ConnectionError):  # a peer that does not speak, or says too much
            pass
        finally:
            writer.close()

    async def _answered(self, line: bytes, uid: int) -> Done:
        if uid not in self._allowed:
            return Done(error=f"user {uid} may not ask this")
        try:
            wish = msgspec.json.decode(line, type=Wish)
        except msgspec.DecodeError as error:
            return Done(error=f"not understood: {error}")
        async with self._lock:  # one at a time: a driver that hangs holds up its own kind only
            try:
                return await asyncio.wait_for(asyncio.to_thread(self.grant, wish), ANSWER_S)
            except TimeoutError:
                return Done(error=f"the driver did not answer in {ANSWER_S:g} s")
            except (Refused, self._nvml.NVMLError) as error:
                return Done(error=str(error))

    def grant(self, wish: Wish) -> Done:
        """Do it and read it back; raises Refused or NVML's error."""
        nvml = self._nvml
        card = nvml.nvmlDeviceGetHandleByUUID(wish.gpu_id.encode())
        match wish:
            case PowerLimit():
                self._limit(card, wish)
            case ClockLimit():
                most = nvml.nvmlDeviceGetMaxClockInfo(card, _SM)
                _within("clocks", wish.mhz, CLOCK_LEAST_MHZ, most, "MHz")
                nvml.nvmlDeviceSetGpuLockedClocks(card, 0, wish.mhz)
            case StockClocks():
                stock(nvml, card)
            case _:
                assert_never(wish)
        return Done(power_limit_w=nvml.nvmlDeviceGetEnforcedPowerLimit(card) // 1000)

    def _limit(self, card: Any, wish: PowerLimit) -> None:
        nvml = self._nvml
        least, _ = nvml.nvmlDeviceGetPowerManagementLimitConstraints(card)
        _within("power", wish.watts, -(-least // 1000), nvml.nvmlDeviceGetPowerManagementDefaultLimit(card) // 1000, "W")
        if wish.gpu_id not in self._found_w:  # noted first: a crash in between sets back what was never changed
            self._found_w[wish.gpu_id] = nvml.nvmlDeviceGetEnforcedPowerLimit(card) // 1000
            write_private(self._kept, msgspec.json.encode(self._found_w))
        before_w = nvml.nvmlDeviceGetEnforcedPowerLimit(card) // 1000
        nvml.nvmlDeviceSetPowerManagementLimit(card, wish.watts * 1000)
        self._lend(wish, before_w)
        said = nvml.nvmlDeviceGetEnforcedPowerLimit(card) // 1000
        if said != wish.watts:
            raise Refused(f"the driver was told {wish.watts} W and says {said} W")

    def _lend(self, wish: PowerLimit, before_w: int) -> None:
        """Note until when a limit holds and what was there before; one without an end takes the place of what was lent."""
        _, before_w = self._lent.pop(wish.gpu_id, (0.0, before_w))
        if wish.for_s > 0:
            self._lent[wish.gpu_id] = (time.monotonic() + min(wish.for_s, LENT_MOST_S), before_w)

    async def expire(self) -> None:
        """For ever: what was lent and not asked for again goes back to what was there before."""
        while True:
            await asyncio.sleep(1.0)
            async with self._lock:
                for gpu_id in [key for key, (until, _) in self._lent.items() if until <= time.monotonic()]:
                    _, watts = self._lent.pop(gpu_id)
                    with contextlib.suppress(self._nvml.NVMLError):
                        await asyncio.to_thread(
                            self._nvml.nvmlDeviceSetPowerManagementLimit, self._nvml.nvmlDeviceGetHandleByUUID(gpu_id.encode()), watts * 1000
                        )

    def set_back(self) -> None:
        """Power limits as they were found; a card that is gone keeps what it has."""
        for gpu_id, watts in self._found_w.items():
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlDeviceSetPowerManagementLimit(self._nvml.nvmlDeviceGetHandleByUUID(gpu_id.encode()), watts * 1000)
        self._found_w.clear()
        self._kept.unlink(missing_ok=True)


def _within(what: str, wanted: int, least: int, most: int, unit: str) -> None:
    if not least <= wanted <= most:
        raise Refused(f"{what} of {wanted} {unit} is outside {least} to {most} {unit}")


def _peer(connection: Any) -> int:
    """The user at the other end, as the kernel knows it (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1]


async def serve(path: Path, uid: int, ready: Callable[[], None], over: asyncio.Event) -> None:
    """Until `over`; raises OSError where the socket can't be had, RuntimeError where there is no driver."""
    with driver() as nvml:
        if nvml is None:
            raise RuntimeError("NVML finds no driver: there is nothing to set here")
        helper = Helper(nvml, path.with_name("limits-found.json"), uid)
        server = await asyncio.start_unix_server(helper.answer, sock=_bound(path, uid), limit=LINE_BYTES_MAX)
        ready()
        expiring = asyncio.ensure_future(helper.expire())
        async with server:
            await over.wait()
        expiring.cancel()
        helper.set_back()


def _bound(path: Path, uid: int) -> socket.socket:
    """The socket that only `uid` and root reach, in place of one that a killed helper left."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # from its first moment
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    os.chown(path, uid, -1)
    return listening


def ask(wish: Wish) -> Done:
    """Ask this machine's helper; an error where there is none."""
    path = os.environ.get("HEADFRAME_HELPER", str(SOCKET))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(ASK_S)
            line.connect(path)
            line.sendall(msgspec.json.encode(wish) + b"\n")
            return msgspec.json.decode(line.makefile("rb").readline(LINE_BYTES_MAX), type=Done)
    except (OSError, msgspec.DecodeError) as error:
        return Done(error=f"no helper answers at {path}: {error}")
