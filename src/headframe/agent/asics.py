"""Mining machines through pyasic: found on a network, read, stopped and resumed. One that does not answer is unknown, never stopped."""

import asyncio
import contextlib
import importlib.util
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from headframe.model.errors import BadRequest, Conflicting
from headframe.model.power import Asic, AsicState

AT_ONCE, ANSWER_S, HOSTS_MAX = 64, 15.0, 4096
TERA, ASLEEP_MOST_W = 1e12, 300


def has_pyasic() -> bool:
    """Whether the library is there: an extra, since most sites have no such machines."""
    return importlib.util.find_spec("pyasic") is not None


def scanned(network: str) -> list[Asic]:
    """The mining machines of a network (CIDR, at most HOSTS_MAX addresses). BadRequest for what is no network, Conflicting without the library."""
    try:
        hosts = [str(host) for host in ipaddress.ip_network(network, strict=False).hosts()]
    except ValueError as error:
        raise BadRequest(f"{network!r} is no network: {error}", "write it like 10.0.8.0/24") from error
    if len(hosts) > HOSTS_MAX:
        raise BadRequest(f"{network} has {len(hosts)} addresses", f"at most {HOSTS_MAX} at once: name its parts")
    return [found for found in asyncio.run(seen(hosts)) if found is not None]


async def seen(hosts: Sequence[str]) -> list[Asic | None]:
    """What stands at each address, None where no mining machine answers."""
    _needed()
    gate = asyncio.Semaphore(AT_ONCE)

    async def look(host: str) -> Asic | None:
        async with gate:
            return await _seen(host)

    return await asyncio.gather(*map(look, hosts))


async def told(asic: Asic) -> str:
    """Have a machine do what is wanted of it, mining or not; why that could not be done, "" where it was."""
    return await _have(
        asic, lambda machine: machine.stop_mining() if asic.wanted is AsicState.STOPPED else machine.resume_mining(), "it did not do it"
    )


async def limited(asic: Asic) -> str:
    """Have a machine draw at most `wanted_w`; why that could not be done, "" where it was. Firmwares that know steps take the highest below."""
    return await _have(asic, lambda machine: machine.set_power_limit(int(asic.wanted_w)), f"it knows no limit of {asic.wanted_w:g} W or less")


async def _have(asic: Asic, act: Callable[[Any], Awaitable[bool]], otherwise: str) -> str:
    _needed()
    try:
        machine = await asyncio.wait_for(_machine(asic.ip), ANSWER_S)
        if machine is None:
            return f"no mining machine answers at {asic.ip}"
        done = await asyncio.wait_for(act(machine), ANSWER_S)
    except (OSError, TimeoutError) as error:
        return f"{asic.ip} did not answer: {error or 'too late'}"
    except Exception as error:
        return f"{asic.ip}: {type(error).__name__}: {str(error)[:120]}"
    return "" if done else f"{asic.ip}: {otherwise}"


async def _seen(host: str) -> Asic | None:
    try:
        machine = await asyncio.wait_for(_machine(host), ANSWER_S)
        if machine is None:
            return None
        data = await asyncio.wait_for(
            machine.get_data(include=["hashrate", "expected_hashrate", "wattage", "mac", "is_mining", "hostname", "wattage_limit"]), ANSWER_S
        )
    except Exception:
        return None
    name = str(getattr(data, "hostname", "") or "") or host
    return Asic(id=f"asic-{(data.mac or host).lower()}", name=name[:63], ip=host, model=str(machine.model or machine.raw_model or "unknown")[:63], hashes_s=max(_hashes(data.hashrate), _hashes(data.expected_hashrate)), watts=float(data.wattage or 0),
                can_stop=bool(getattr(machine, "supports_shutdown", False)), can_limit=bool(getattr(machine, "supports_autotuning", False)), limit_w=float(data.wattage_limit or 0), state=_state(data))  # fmt: skip


def _state(data: Any) -> AsicState:
    """By its own word, else by its hashes, else by its watts: some firmwares' hashrates pyasic 0.79 does not give (LuxOS), and asleep a machine draws tens of watts."""
    if data.is_mining is False:
        return AsicState.STOPPED
    if data.hashrate is not None:
        return AsicState.MINING if _hashes(data.hashrate) > 0 else AsicState.STOPPED
    if data.wattage is None:
        return AsicState.UNKNOWN
    return AsicState.MINING if data.wattage >= ASLEEP_MOST_W else AsicState.STOPPED


def _hashes(rate: Any) -> float:
    """Pyasic's rates carry their unit; as a plain number they are in terahashes for SHA-256."""
    if rate is None:
        return 0.0
    with contextlib.suppress(Exception):
        return float(rate.into(type(rate.unit).H).rate)
    return float(rate) * TERA


async def _machine(host: str) -> Any:
    import pyasic

    logging.getLogger("pyasic").setLevel(logging.ERROR)
    return await pyasic.get_miner(host)


def _needed() -> None:
    if not has_pyasic():
        raise Conflicting("mining machines are read through pyasic, which is not installed", "pip install 'headframe[asics]'")
