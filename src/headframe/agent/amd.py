"""AMD's cards through amdsmi, where ROCm has brought its library: one table from each datum to its call, as for NVIDIA.

A card is known by the form in which ROCm itself names it (`GPU-` and its 16-digit serial), so that work can be bound to it. Whatever amdsmi
answers with `N/A`, refuses or does not know stays unknown. Told by a stand-in for libamd_smi.so in tests; not yet tried on a card.
"""

import contextlib
import ctypes
import importlib.util
import io
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headframe.agent.scrub import HIP
from headframe.agent.vendor import Gone
from headframe.health.xid import slot
from headframe.model.health import Inventory, Sample

LIBRARY = "libamd_smi.so"
Read = Callable[[Any, Any], Any]
"""Asks amdsmi (its module) about a card (its handle)."""

INVENTORY: dict[str, Read] = {
    "model": lambda smi, card: smi.amdsmi_get_gpu_asic_info(card)["market_name"],
    "compute_capability": lambda smi, card: smi.amdsmi_get_gpu_asic_info(card)["target_graphics_version"],
    "serial": lambda smi, card: smi.amdsmi_get_gpu_asic_info(card)["asic_serial"],
    "memory_mib": lambda smi, card: smi.amdsmi_get_gpu_vram_info(card)["vram_size"],
    "slot": lambda smi, card: slot(smi.amdsmi_get_gpu_device_bdf(card)),
    "vbios": lambda smi, card: smi.amdsmi_get_gpu_vbios_info(card)["version"],
    "driver": lambda smi, card: smi.amdsmi_get_gpu_driver_info(card)["driver_version"],
    "power_limit_w": lambda smi, card: smi.amdsmi_get_power_cap_info(card)["power_cap"] // 1_000_000,
    "power_default_w": lambda smi, card: smi.amdsmi_get_power_cap_info(card)["default_power_cap"] // 1_000_000,
    "link_gen_max": lambda smi, card: generation(smi.amdsmi_get_pcie_info(card)["pcie_static"]["max_pcie_speed"]),
    "link_width_max": lambda smi, card: smi.amdsmi_get_pcie_info(card)["pcie_static"]["max_pcie_width"],
}
ERRORS: dict[str, Read] = {
    "ecc_uncorrected": lambda smi, card: smi.amdsmi_get_gpu_total_ecc_count(card)["uncorrectable_count"],
    "ecc_corrected": lambda smi, card: smi.amdsmi_get_gpu_total_ecc_count(card)["correctable_count"],
    "retired_pages": lambda smi, card: len(smi.amdsmi_get_gpu_bad_page_info(card)),
}
SAMPLE: dict[str, Read] = {
    "temperature_c": lambda smi, card: _heat(smi, card, "HOTSPOT"),
    "memory_temperature_c": lambda smi, card: _heat(smi, card, "VRAM"),
    "power_w": lambda smi, card: _power(smi.amdsmi_get_power_info(card)),
    "sm_mhz": lambda smi, card: smi.amdsmi_get_clock_info(card, smi.AmdSmiClkType.GFX)["clk"],
    "memory_mhz": lambda smi, card: smi.amdsmi_get_clock_info(card, smi.AmdSmiClkType.MEM)["clk"],
    "use": lambda smi, card: smi.amdsmi_get_gpu_activity(card)["gfx_activity"] / 100,
    "memory_used_mib": lambda smi, card: smi.amdsmi_get_gpu_vram_usage(card)["vram_used"],
    "fan": lambda smi, card: smi.amdsmi_get_gpu_fan_speed(card, 0) / smi.amdsmi_get_gpu_fan_speed_max(card, 0),
    "energy_mj": lambda smi, card: _energy(smi.amdsmi_get_energy_count(card)),
    "link_gen": lambda smi, card: generation(smi.amdsmi_get_pcie_info(card)["pcie_metric"]["pcie_speed"]),
    "link_width": lambda smi, card: smi.amdsmi_get_pcie_info(card)["pcie_metric"]["pcie_width"],
    "replays": lambda smi, card: smi.amdsmi_get_pcie_info(card)["pcie_metric"]["pcie_replay_count"],
}
SLOW: dict[str, Read] = {
    "slowdown_c": lambda smi, card: smi.amdsmi_get_temp_metric(card, smi.AmdSmiTemperatureType.HOTSPOT, smi.AmdSmiTemperatureMetric.CRITICAL),
    "power_limit_w": lambda smi, card: smi.amdsmi_get_power_cap_info(card)["power_cap"] / 1_000_000,
    **ERRORS,
}
PLACED: dict[str, Read] = {
    "pci_bus": lambda smi, card: smi.amdsmi_get_gpu_device_bdf(card),
    "pcie_width": lambda smi, card: smi.amdsmi_get_pcie_info(card)["pcie_metric"]["pcie_width"],
}
SPEEDS_MT_S = {2500: 1, 5000: 2, 8000: 3, 16000: 4, 32000: 5, 64000: 6}
"""PCI Express generations by what a lane transfers, in 10^6 a second (PCI-SIG)."""


@contextlib.contextmanager
def opened() -> Generator["Amd | None"]:
    """AMD's cards; None where there is no library, or no card of theirs."""
    smi = _module()
    if smi is None:
        yield None
        return
    try:
        smi.amdsmi_init()
        cards = smi.amdsmi_get_processor_handles()
    except smi.AmdSmiException:
        yield None
        return
    try:
        yield Amd(smi, cards) if cards else None
    finally:
        with contextlib.suppress(smi.AmdSmiException):
            smi.amdsmi_shut_down()


def _module() -> Any:
    """amdsmi, which looks for its library when it is imported, and prints and fails in its own way where there is none."""
    places = [Path(os.environ[name]) / "lib" / LIBRARY for name in ("ROCM_HOME", "ROCM_PATH") if name in os.environ]
    if importlib.util.find_spec("amdsmi") is None or not any(map(_loads, [*map(str, places), LIBRARY, f"/opt/rocm/lib/{LIBRARY}"])):
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            import amdsmi
        except (ImportError, KeyError, AttributeError):  # a library of another version than its module
            return None
    return amdsmi


def _loads(path: str) -> bool:
    try:
        ctypes.CDLL(path)
    except OSError:
        return False
    return True


class Amd:
    """See `Vendor`."""

    name = "amd"
    library = HIP

    def __init__(self, smi: Any, cards: list[Any]) -> None:
        self._smi = smi
        self._cards = cards

    def count(self) -> int:
        return len(self._cards)

    def uuid(self, number: int) -> str:
        known = self._asked(number, {"serial": INVENTORY["serial"], "uuid": lambda smi, card: smi.amdsmi_get_gpu_device_uuid(card)})
        serial = str(known.get("serial", "")).removeprefix("0x").lower()
        return f"GPU-{serial}" if serial.strip("0") else f"AMD-{known['uuid']}" if "uuid" in known else ""

    def inventory(self, number: int) -> Inventory:
        known: dict[str, Any] = {"model": "unknown", "memory_mib": 0, **self._asked(number, INVENTORY), **self._asked(number, ERRORS)}
        return Inventory(vendor="amd", ecc="ecc_uncorrected" in known, **known)

    def placed(self, number: int) -> dict[str, Any]:
        return self._asked(number, PLACED)

    def sample(self, number: int, gpu_id: str, at_ms: int, *, slow: bool) -> Sample:
        began = time.monotonic()
        try:
            known, present = self._asked(number, {**SAMPLE, **SLOW} if slow else SAMPLE), True
        except Gone:
            known, present = {}, False
        return Sample(gpu_id=gpu_id, at_ms=at_ms, present=present, answer_ms=int((time.monotonic() - began) * 1000), **known)

    def processes(self, number: int) -> Sequence[int]:
        try:
            return sorted({each["pid"] for each in self._smi.amdsmi_get_gpu_process_list(self._cards[number])})
        except self._smi.AmdSmiException as error:
            raise Gone(str(error)) from error  # not to know is not to be alone

    def used_mib(self, number: int) -> int:
        try:
            return SAMPLE["memory_used_mib"](self._smi, self._cards[number])
        except self._smi.AmdSmiException as error:
            raise Gone(str(error)) from error

    def stock(self, number: int) -> None:
        """Nothing is known to be set that could be set back."""

    def off_stock(self, number: int) -> str:
        del number
        return ""

    def reach(self, one: int, other: int) -> bool:
        del one, other
        return False  # amdsmi tells of XGMI only; whether a card reaches another's memory over PCIe is not known

    def _asked(self, number: int, table: Mapping[str, Read]) -> dict[str, Any]:
        """What the card answers of a table; raises Gone where it answers nothing at all, not even its place."""
        known: dict[str, Any] = {}
        for name, read in table.items():
            try:
                value = read(self._smi, self._cards[number])
            except (self._smi.AmdSmiException, TypeError, ValueError, ZeroDivisionError):
                continue  # not supported, `N/A` where a number should be, or refused: it stays unknown
            if value not in {None, "N/A", ""}:
                known[name] = value
        if not known:
            self._there(number)
        return known

    def _there(self, number: int) -> None:
        try:
            self._smi.amdsmi_get_gpu_device_bdf(self._cards[number])
        except self._smi.AmdSmiException as error:
            raise Gone(str(error)) from error


def generation(speed_mt_s: int) -> int:
    """PCI Express' generation by a lane's speed; ValueError where it is none."""
    if speed_mt_s not in SPEEDS_MT_S:
        raise ValueError(speed_mt_s)
    return SPEEDS_MT_S[speed_mt_s]


def _heat(smi: Any, card: Any, where: str) -> int:
    return smi.amdsmi_get_temp_metric(card, smi.AmdSmiTemperatureType[where], smi.AmdSmiTemperatureMetric.CURRENT)


def _power(told: Mapping[str, Any]) -> float:
    """Watts now; older cards tell an average only."""
    return next(float(told[name]) for name in ("current_socket_power", "average_socket_power") if told[name] not in {"N/A", 0})


def _energy(told: Mapping[str, Any]) -> int:
    """Millijoules since the driver was loaded: the counter is in its own resolution, in microjoules."""
    return int(told["energy_accumulator"] * told["counter_resolution"] / 1000)
