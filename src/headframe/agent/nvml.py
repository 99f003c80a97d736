"""NVIDIA cards through NVML: one table from each datum to its call. A card that can't answer a question is still a card.

NVML documents "limited support" for GeForce: any call may say that it is not supported, and one that an old driver lacks is a
function that is not found. Both leave the datum unknown, never 0. A card that answers that it is lost is not there.
"""

import contextlib
import ctypes
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from headframe.health.xid import slot
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


@contextlib.contextmanager
def opened() -> Generator[Any]:
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


def inventory(nvml: Any, card: Any) -> Inventory:
    """What the card says of itself at rest."""
    known = {"model": "unknown", "memory_mib": 0, **asked(INVENTORY, nvml, card)}
    ecc = asked({"ecc": lambda nvml, card: bool(nvml.nvmlDeviceGetEccMode(card)[0])}, nvml, card)
    errors = asked(ERRORS, nvml, card) if ecc.get("ecc") else {}
    action = asked({"recovery_action": SLOW["recovery_action"]}, nvml, card)
    return Inventory(**known, **ecc, **errors, **action)


def sample(nvml: Any, index: int, gpu_id: str, at_ms: int, *, slow: bool) -> Sample:
    """One reading of a card. With `slow` also what changes seldom. `answer_ms` is how long the driver took for all of it."""
    began = time.monotonic()
    try:
        card = nvml.nvmlDeviceGetHandleByIndex(index)
        known = asked(SAMPLE, nvml, card)
        if slow:
            known |= asked(SLOW, nvml, card)
            known |= asked(ERRORS, nvml, card) if asked({"ecc": lambda nvml, card: nvml.nvmlDeviceGetEccMode(card)[0]}, nvml, card).get("ecc") else {}
        present = True
    except nvml.NVMLError:  # lost, or there is no such card any more
        known, present = {}, False
    return Sample(gpu_id=gpu_id, at_ms=at_ms, present=present, answer_ms=int((time.monotonic() - began) * 1000), **known)


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


def uuid(nvml: Any, card: Any) -> str:
    """What a card is known by."""
    return text(nvml.nvmlDeviceGetUUID(card))


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
