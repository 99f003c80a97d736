"""NVIDIA cards through NVML: one table from each datum to its call. A card that can't answer a question is still a card.

NVML documents "limited support" for GeForce: any call may say that it is not supported, and one that an old driver lacks is a
function that is not found. Both leave the datum unknown, never 0. A card that answers that it is lost is not there.
"""

import contextlib
import ctypes
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from headframe.agent.scrub import CUDA
from headframe.agent.vendor import Gone
from headframe.health.xid import slot
from headframe.model.fleet import Sharing
from headframe.model.health import Inventory, Sample

MIB = 1024 * 1024
_VOLATILE, _CORRECTED, _UNCORRECTED = 0, 0, 1
_SLOWDOWN, _SM, _MEMORY_CLOCK = 1, 1, 2
_MEMORY_TEMPERATURE, _RECOVERY_ACTION = 82, 230
_RETIRED_CAUSES = (0, 1)

Read = Callable[[Any, Any], Any]
"""Asks NVML (its module) about a card (its handle)."""

INVENTORY: dict[str, Read] = {
    "model": lambda nvml, card: text(nvml.nvmlDeviceGetName(card)),
    "memory_mib": lambda nvml, card: nvml.nvmlDeviceGetMemoryInfo(card).total // MIB,
    "slot": lambda nvml, card: slot(text(nvml.nvmlDeviceGetPciInfo(card).busId)),
    "compute_capability": lambda nvml, card: ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(card))),
    "vbios": lambda nvml, card: text(nvml.nvmlDeviceGetVbiosVersion(card)),
    "serial": lambda nvml, card: text(nvml.nvmlDeviceGetSerial(card)),
    "driver": lambda nvml, _card: text(nvml.nvmlSystemGetDriverVersion()),
    "power_limit_w": lambda nvml, card: nvml.nvmlDeviceGetEnforcedPowerLimit(card) // 1000,
    "power_default_w": lambda nvml, card: nvml.nvmlDeviceGetPowerManagementDefaultLimit(card) // 1000,
    "link_gen_max": lambda nvml, card: nvml.nvmlDeviceGetMaxPcieLinkGeneration(card),
    "link_width_max": lambda nvml, card: nvml.nvmlDeviceGetMaxPcieLinkWidth(card),
    "persistence": lambda nvml, card: bool(nvml.nvmlDeviceGetPersistenceMode(card)),
    "core_offset_mhz": lambda nvml, card: nvml.nvmlDeviceGetGpcClkVfOffset(card),
    "memory_offset_mhz": lambda nvml, card: nvml.nvmlDeviceGetMemClkVfOffset(card),
}
ERRORS: dict[str, Read] = {
    "ecc_uncorrected": lambda nvml, card: nvml.nvmlDeviceGetTotalEccErrors(card, _UNCORRECTED, _VOLATILE),
    "ecc_corrected": lambda nvml, card: nvml.nvmlDeviceGetTotalEccErrors(card, _CORRECTED, _VOLATILE),
    "remap_pending": lambda nvml, card: bool(nvml.nvmlDeviceGetRemappedRows(card)[2]),
    "remap_failed": lambda nvml, card: bool(nvml.nvmlDeviceGetRemappedRows(card)[3]),
    "sram_threshold": lambda nvml, card: _sram(nvml, card),
    "retired_pages": lambda nvml, card: sum(len(nvml.nvmlDeviceGetRetiredPages(card, cause)) for cause in _RETIRED_CAUSES),
    "retired_pending": lambda nvml, card: bool(nvml.nvmlDeviceGetRetiredPagesPendingStatus(card)),
}
"""Of cards with ECC only: a 4090 answers the question for remapped rows without meaning it (seen by gpud)."""
SAMPLE: dict[str, Read] = {
    "temperature_c": lambda nvml, card: nvml.nvmlDeviceGetTemperature(card, 0),
    "power_w": lambda nvml, card: nvml.nvmlDeviceGetPowerUsage(card) / 1000,
    "sm_mhz": lambda nvml, card: nvml.nvmlDeviceGetClockInfo(card, _SM),
    "memory_mhz": lambda nvml, card: nvml.nvmlDeviceGetClockInfo(card, _MEMORY_CLOCK),
    "reasons": lambda nvml, card: nvml.nvmlDeviceGetCurrentClocksEventReasons(card),
    "use": lambda nvml, card: nvml.nvmlDeviceGetUtilizationRates(card).gpu / 100,
    "memory_used_mib": lambda nvml, card: nvml.nvmlDeviceGetMemoryInfo(card).used // MIB,
    "fan": lambda nvml, card: nvml.nvmlDeviceGetFanSpeed(card) / 100,
    "memory_temperature_c": lambda nvml, card: _field(nvml, card, _MEMORY_TEMPERATURE),
    "energy_mj": lambda nvml, card: nvml.nvmlDeviceGetTotalEnergyConsumption(card),
    "link_gen": lambda nvml, card: nvml.nvmlDeviceGetCurrPcieLinkGeneration(card),
    "link_width": lambda nvml, card: nvml.nvmlDeviceGetCurrPcieLinkWidth(card),
    "replays": lambda nvml, card: nvml.nvmlDeviceGetPcieReplayCounter(card),
}
SLOW: dict[str, Read] = {
    "slowdown_c": lambda nvml, card: nvml.nvmlDeviceGetTemperatureThreshold(card, _SLOWDOWN),
    "power_limit_w": lambda nvml, card: nvml.nvmlDeviceGetEnforcedPowerLimit(card) / 1000,
    "recovery_action": lambda nvml, card: _field(nvml, card, _RECOVERY_ACTION),
}
"""What changes seldom: read once a minute."""


PLACED: dict[str, Read] = {
    "pci_bus": lambda nvml, card: text(nvml.nvmlDeviceGetPciInfo(card).busId),
    "pcie_width": lambda nvml, card: nvml.nvmlDeviceGetCurrPcieLinkWidth(card),
    "sharing": lambda nvml, card: SHARING.get(nvml.nvmlDeviceGetComputeMode(card), Sharing.TIME_SLICE),
}
SHARING = {0: Sharing.TIME_SLICE, 2: Sharing.EXCLUSIVE, 3: Sharing.EXCLUSIVE}
"""By NVML's compute mode; in 2 (prohibited) and 3 (one process) a card takes one holder at most."""
_P2P_READ, _P2P_OK = 0, 0
"""NVML_P2P_CAPS_INDEX_READ and NVML_P2P_STATUS_OK of nvml.h; nvidia-ml-py has the first as a tuple, which its own call refuses."""
_CLOCKS = {"core_offset_mhz": "core", "memory_offset_mhz": "memory"}
_ECC: dict[str, Read] = {"ecc": lambda nvml, card: bool(nvml.nvmlDeviceGetEccMode(card)[0])}


@contextlib.contextmanager
def driver() -> Generator[Any]:
    """NVML's module, initialised; None where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


@contextlib.contextmanager
def opened() -> Generator["Nvidia | None"]:
    """NVIDIA's cards; None where there is no driver."""
    with driver() as nvml:
        yield Nvidia(nvml) if nvml else None


class Nvidia:
    """See `Vendor`."""

    name = "nvidia"
    library = CUDA

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def count(self) -> int:
        return self._nvml.nvmlDeviceGetCount()

    def uuid(self, number: int) -> str:
        with self._card(number) as card:
            return text(self._nvml.nvmlDeviceGetUUID(card))

    def inventory(self, number: int) -> Inventory:
        with self._card(number) as card:
            known = {"model": "unknown", "memory_mib": 0, **asked(INVENTORY, self._nvml, card)}
            ecc = asked(_ECC, self._nvml, card)
            errors = asked(ERRORS, self._nvml, card) if ecc.get("ecc") else {}
            action = asked({"recovery_action": SLOW["recovery_action"]}, self._nvml, card)
            return Inventory(**known, **ecc, **errors, **action)

    def placed(self, number: int) -> dict[str, Any]:
        with self._card(number) as card:
            return asked(PLACED, self._nvml, card)

    def sample(self, number: int, gpu_id: str, at_ms: int, *, slow: bool) -> Sample:
        began = time.monotonic()
        try:
            with self._card(number) as card:
                known, present = self._read(card, slow=slow), True
        except Gone:
            known, present = {}, False
        return Sample(gpu_id=gpu_id, at_ms=at_ms, present=present, answer_ms=int((time.monotonic() - began) * 1000), **known)

    def _read(self, card: Any, *, slow: bool) -> dict[str, Any]:
        known = asked(SAMPLE, self._nvml, card)
        if slow:
            known |= asked(SLOW, self._nvml, card)
            known |= asked(ERRORS, self._nvml, card) if asked(_ECC, self._nvml, card).get("ecc") else {}
        return known

    def processes(self, number: int) -> Sequence[int]:
        with self._card(number) as card:
            try:
                return sorted({each.pid for each in self._nvml.nvmlDeviceGetComputeRunningProcesses(card)})
            except self._nvml.NVMLError as error:
                if error.value != self._nvml.NVML_ERROR_NOT_SUPPORTED:
                    raise  # not to know is not to be alone
                return ()

    def used_mib(self, number: int) -> int:
        with self._card(number) as card:
            return self._nvml.nvmlDeviceGetMemoryInfo(card).used // MIB

    def stock(self, number: int) -> None:
        with self._card(number) as card:
            stock(self._nvml, card)

    def off_stock(self, number: int) -> str:
        with self._card(number) as card:
            offsets = asked({name: INVENTORY[name] for name in _CLOCKS}, self._nvml, card)
        return next((f"its {_CLOCKS[name]} clock is {value:+} MHz off" for name, value in offsets.items() if value), "")

    def reach(self, one: int, other: int) -> bool:
        with contextlib.suppress(Gone), self._card(one) as first, self._card(other) as second:
            return self._nvml.nvmlDeviceGetP2PStatus(first, second, _P2P_READ) == _P2P_OK
        return False

    @contextlib.contextmanager
    def _card(self, number: int) -> Generator[Any]:
        """Its handle; what NVML says no to in between, the card is gone for."""
        try:
            yield self._nvml.nvmlDeviceGetHandleByIndex(number)
        except self._nvml.NVMLError as error:
            raise Gone(str(error)) from error


def stock(nvml: Any, card: Any) -> None:
    """Clocks as the maker set them, as far as this process may; what can't be set back stays."""
    attempts: tuple[Callable[[], Any], ...] = (
        lambda: nvml.nvmlDeviceResetGpuLockedClocks(card), lambda: nvml.nvmlDeviceResetMemoryLockedClocks(card),
        lambda: nvml.nvmlDeviceGetGpcClkVfOffset(card) and nvml.nvmlDeviceSetGpcClkVfOffset(card, 0),
        lambda: nvml.nvmlDeviceGetMemClkVfOffset(card) and nvml.nvmlDeviceSetMemClkVfOffset(card, 0),
    )  # fmt: skip
    for attempt in attempts:
        with contextlib.suppress(nvml.NVMLError, AttributeError):
            attempt()


def asked(table: Mapping[str, Read], nvml: Any, card: Any) -> dict[str, Any]:
    """What the card answers of a table; raises NVML's error if it is lost."""
    known: dict[str, Any] = {}
    for name, read in table.items():
        try:
            value = read(nvml, card)
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
                raise
            continue  # the datum stays unknown
        if value is not None:
            known[name] = value
    return known


def text(value: bytes | str) -> str:
    """NVML's strings, bytes in some versions."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _field(nvml: Any, card: Any, field: int) -> int | None:
    value = nvml.nvmlDeviceGetFieldValues(card, [field])[0]
    return int(value.value.uiVal) if value.nvmlReturn == 0 else None


def _sram(nvml: Any, card: Any) -> bool:
    status = nvml.c_nvmlEccSramErrorStatus_v1_t()
    nvml.nvmlDeviceGetSramEccErrorStatus(card, ctypes.byref(status))  # it hands on what it is given
    return bool(status.bThresholdExceeded)
