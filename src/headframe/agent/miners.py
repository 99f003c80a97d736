"""What miners say of themselves: one table, each with where it is asked, in which units it answers, and which of its fields are read.

Miners are closed programs whose answers are untrusted text: whatever is missing or odd leaves a figure unknown, never wrong by a factor, and nothing they say reaches a command.
All are asked on loopback only. Fields are those of each miner's own documentation or source, as HiveOS' `h-stats.sh` scripts read them.
"""

import json
import math
import os
import re
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import httpx
import msgspec

from headframe.model.agent import Miner
from headframe.model.power import HASHES_MOST, Reading

TIMEOUT_S, ANSWER_BYTES_MAX = 5.0, 256 * 1024
_SCALE = {"h": 1.0, "kh": 1e3, "mh": 1e6, "gh": 1e9, "th": 1e12, "sol": 1.0, "hs": 1.0, "khs": 1e3, "mhs": 1e6, "ghs": 1e9, "ths": 1e12}
_SAMPLE = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(\{[^}]*\})?\s+(\S+)", re.MULTILINE)


class Unread(Exception):
    """A miner did not answer, or not so that it can be read."""


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """How a miner is asked, and how its answer is read."""

    port: int
    ask: Callable[[int], bytes]
    read: Callable[[Any], Reading]
    parse: Callable[[bytes], Any]


def reading(miner: Miner) -> Reading:
    """What a miner of this machine says (port 0: its usual one); Unread where that can't be had."""
    known = ADAPTERS[miner.adapter]
    return read(miner.adapter, _hive_script(miner) if miner.script else known.ask(miner.port or known.port))


def read(adapter: str, answer: bytes) -> Reading:
    """What an answer says; Unread where it can't be read."""
    known = ADAPTERS[adapter]
    try:
        return _sane(known.read(known.parse(answer)))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise Unread(f"{adapter}: not understood: {type(error).__name__} {error}") from error


def _sane(found: Reading) -> Reading:
    if not (math.isfinite(found.hashes_s) and 0 <= found.hashes_s <= HASHES_MOST):
        raise ValueError(f"{found.hashes_s} hashes a second")
    watts = found.watts if found.watts is not None and math.isfinite(found.watts) and 0 < found.watts < 20_000 else None
    return msgspec.structs.replace(
        found, watts=watts, accepted=max(0, found.accepted), rejected=max(0, found.rejected), uptime_s=max(0, found.uptime_s)
    )


# How they are asked


def _http(path: str) -> Callable[[int], bytes]:
    def ask(port: int) -> bytes:
        try:
            with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as line, line.stream("GET", f"http://127.0.0.1:{port}{path}") as response:
                return _bounded(response.iter_bytes())
        except httpx.HTTPError as error:
            raise Unread(f"nothing answers at 127.0.0.1:{port}: {error}") from error

    return ask


def _cgminer(command: str) -> Callable[[int], bytes]:
    """Cgminer's API: a line of JSON over TCP; the answer ends with the connection, or with a NUL."""

    def ask(port: int) -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as line:
                line.sendall(json.dumps({"command": command}).encode())
                return _bounded(iter(lambda: line.recv(65536), b""))
        except OSError as error:
            raise Unread(f"nothing answers at 127.0.0.1:{port}: {error}") from error

    return ask


def _bounded(pieces: Any) -> bytes:
    found = b""
    for piece in pieces:
        found += piece
        if len(found) > ANSWER_BYTES_MAX:
            raise Unread("the answer is too long")
        if found.endswith(b"\0"):
            break
    return found


def _unscripted(_port: int) -> bytes:
    raise Unread("HiveOS reads miners by scripts: give the `h-stats.sh` that reads this one")


def _hive_script(miner: Miner) -> bytes:
    """What an `h-stats.sh` leaves, run as HiveOS does: it sets `khs` and `stats`. The script is the operator's own; it finds its card's port in HEADFRAME_STATS_PORT."""
    shell = '[ -r "$0" ] || exit 1; . "$0" >/dev/null 2>&1; printf \'{"khs": %s, "stats": %s}\' "${khs:-0}" "${stats:-null}"'
    env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HEADFRAME_STATS_PORT": str(miner.port)}
    try:
        return subprocess.run(["/bin/bash", "-c", shell, miner.script], capture_output=True, timeout=TIMEOUT_S, check=False, env=env).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unread(f"{miner.script}: {error}") from error


# How they are read


def loose(answer: bytes) -> Any:
    """JSON as miners write it: a NUL at the end, a comma before a bracket, objects put together without one (old cgminer)."""
    text = answer.rstrip(b"\0\r\n ").decode("utf-8", "replace")
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return json.loads(re.sub(r"}\s*{", "},{", re.sub(r",\s*([}\]])", r"\1", text)))


def _scale(unit: object) -> float:
    return _SCALE[str(unit or "h").lower().removesuffix("/s").strip()]


def _sum(items: Any, name: str) -> float:
    return sum(float(item.get(name) or 0) for item in items)


def _watts(items: Any, name: str) -> float | None:
    total = _sum(items, name)
    return total or None


def _xmrig(told: Any) -> Reading:
    results = told.get("results", {})
    good = int(results.get("shares_good") or 0)
    rate = next((value for value in told["hashrate"]["total"] if value is not None), 0.0)
    return Reading(hashes_s=float(rate), accepted=good, rejected=int(results.get("shares_total") or good) - good, uptime_s=int(told.get("uptime") or 0),
                   algorithm=str(told.get("algo") or ""))  # fmt: skip


def _t_rex(told: Any) -> Reading:
    return Reading(hashes_s=float(told["hashrate"]), watts=_watts(told["gpus"], "power"), accepted=int(told.get("accepted_count") or 0), rejected=int(told.get("rejected_count") or 0),
                   uptime_s=int(told.get("uptime") or 0), algorithm=str(told.get("algorithm") or ""))  # fmt: skip


def _lolminer(told: Any) -> Reading:
    session = told["Session"]
    uptime = int(session.get("Uptime") or 0)
    if "Algorithms" in told:
        one = told["Algorithms"][0]
        return Reading(hashes_s=float(one["Total_Performance"]) * float(one["Performance_Factor"]), watts=_watts(told.get("Workers", []), "Power"), accepted=int(one.get("Total_Accepted") or 0),
                       rejected=int(one.get("Total_Rejected") or 0), uptime_s=uptime, algorithm=str(one.get("Algorithm") or ""))  # fmt: skip
    accepted = int(session.get("Accepted") or 0)
    return Reading(hashes_s=float(session["Performance_Summary"]) * _scale(session.get("Performance_Unit")), watts=float(session.get("TotalPower") or 0) or None, accepted=accepted,
                   rejected=int(session.get("Submitted") or accepted) - accepted, uptime_s=uptime, algorithm=str(told.get("Mining", {}).get("Algorithm") or ""))  # fmt: skip


def _teamred(told: Any) -> Reading:
    """Sgminer's `devs`: MHS av is in 10^6 hashes a second, or KHS in thousands."""
    cards = told["DEVS"]
    rate = sum(float(card.get("MHS av") or 0) * 1e6 or float(card.get("KHS av") or 0) * 1e3 for card in cards)
    return Reading(hashes_s=rate, watts=_watts(cards, "GPU Power"), accepted=int(_sum(cards, "Accepted")), rejected=int(_sum(cards, "Rejected")),
                   uptime_s=int(max((float(card.get("Device Elapsed") or 0) for card in cards), default=0)))  # fmt: skip


def _gminer(told: Any) -> Reading:
    cards = told["devices"]
    return Reading(hashes_s=_sum(cards, "speed"), watts=_watts(cards, "power_usage"), accepted=int(told.get("total_accepted_shares") or _sum(cards, "accepted_shares")),
                   rejected=int(told.get("total_rejected_shares") or _sum(cards, "rejected_shares")), uptime_s=int(told.get("uptime") or 0), algorithm=str(told.get("algorithm") or ""))  # fmt: skip


def _bzminer(told: Any) -> Reading:
    pool = told["pools"][0]
    return Reading(hashes_s=float(pool["hashrate"]), watts=_watts(told.get("devices", []), "power"), accepted=int(pool.get("valid_solutions") or 0), rejected=int(pool.get("rejected_solutions") or 0),
                   uptime_s=int(pool.get("uptime_s") or 0), algorithm=str(pool.get("algorithm") or ""))  # fmt: skip


def _rigel(told: Any) -> Reading:
    name = str(told["algorithm"]).split("+", maxsplit=1)[0]
    cards, shares = told["devices"], told.get("solution_stat", {}).get(name, {})
    rate = sum(float(card.get("hashrate", {}).get(name) or 0) for card in cards)
    watts = sum(float((card.get("monitoring_info") or {}).get("power_usage") or 0) for card in cards)
    return Reading(
        hashes_s=rate,
        watts=watts or None,
        accepted=int(shares.get("accepted") or 0),
        rejected=int(shares.get("rejected") or 0),
        uptime_s=int(told.get("uptime") or 0),
        algorithm=name,
    )


def _srbminer(told: Any) -> Reading:
    one = told["algorithms"][0]
    rates = one["hashrate"]
    rate = float(rates.get("gpu", {}).get("total") or 0) + float(rates.get("cpu", {}).get("total") or 0)
    return Reading(hashes_s=rate, watts=_watts(told.get("gpu_devices", []), "asic_power"), accepted=int(one["shares"]["accepted"]), rejected=int(one["shares"]["rejected"]),
                   uptime_s=int(told.get("mining_time") or 0), algorithm=str(one.get("name") or ""))  # fmt: skip


def _hiveos(told: Any) -> Reading:
    """What `h-stats.sh` leaves: `hs` in `hs_units` (khs where it says nothing), `ar` accepted and rejected."""
    stats = told.get("stats") or {}
    rates, shares = stats.get("hs") or [], stats.get("ar") or [0, 0]
    rate = sum(map(float, rates)) * _scale(stats.get("hs_units") or "khs") if rates else float(told["khs"]) * 1e3
    return Reading(
        hashes_s=rate,
        accepted=int(shares[0]),
        rejected=int(shares[1]),
        uptime_s=int(stats.get("uptime") or 0),
        algorithm=str(stats.get("algo") or ""),
    )


def _prometheus(told: str) -> Reading:
    """Metrics by the words in their names, as krig and exporters call them: `…hashrate…` (hashes a second), `…power…watts…`, `…shares_accepted…`, `…shares_rejected…`."""
    found: dict[str, float] = {}
    for name, _, value in _SAMPLE.findall(told):
        plain = name.lower()
        for what, words in (
            ("rate", ("hashrate",)),
            ("watts", ("power", "watt")),
            ("good", ("accepted",)),
            ("bad", ("rejected",)),
            ("up", ("uptime",)),
        ):
            if all(word in plain for word in words):
                found[what] = found.get(what, 0.0) + float(value)
    return Reading(
        hashes_s=found["rate"],
        watts=found.get("watts") or None,
        accepted=int(found.get("good", 0)),
        rejected=int(found.get("bad", 0)),
        uptime_s=int(found.get("up", 0)),
    )


ADAPTERS: dict[str, Adapter] = {
    "xmrig": Adapter(port=3000, ask=_http("/2/summary"), read=_xmrig, parse=loose), "t-rex": Adapter(port=4067, ask=_http("/summary"), read=_t_rex, parse=loose),
    "lolminer": Adapter(port=4444, ask=_http("/summary"), read=_lolminer, parse=loose), "teamredminer": Adapter(port=4028, ask=_cgminer("devs"), read=_teamred, parse=loose),
    "gminer": Adapter(port=10050, ask=_http("/stat"), read=_gminer, parse=loose), "bzminer": Adapter(port=4014, ask=_http("/status"), read=_bzminer, parse=loose),
    "rigel": Adapter(port=5000, ask=_http("/"), read=_rigel, parse=loose), "srbminer": Adapter(port=21550, ask=_http("/"), read=_srbminer, parse=loose),
    "hiveos": Adapter(port=0, ask=_unscripted, read=_hiveos, parse=loose), "prometheus": Adapter(port=9100, ask=_http("/metrics"), read=_prometheus, parse=lambda answer: answer.decode("utf-8", "replace")),
}  # fmt: skip
