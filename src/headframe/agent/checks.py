"""Checks a machine: facts, not grades. The parent owns the clock and the telemetry and never touches CUDA; the work is done by a child
that may be killed, so a card that hangs costs its steps, not the report. What has no result stays without one.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import msgspec

from headframe.agent.cards import Card as Listed
from headframe.agent.cards import opened
from headframe.agent.dcgm import diagnosed
from headframe.agent.host import host
from headframe.agent.probe import usable_memory_mib
from headframe.agent.vendor import Gone
from headframe.agent.watch import KERNEL_LOG, LINE_BYTES_MAX, line_within, reports
from headframe.engines.runtime import bound
from headframe.health.watch import window
from headframe.model.health import CardFacts, Depth, HostFacts, Inventory, Measured, Sample, Step, Xid

SILENT_S = {Depth.QUICK: 90.0, Depth.FULL: 2400.0, Depth.IDLE: 1200.0}
"""A child that has said nothing for so long hangs: its longest step, with room for slow cards."""
KILL_S = 10.0
SAMPLE_S = 1.0

Told = Callable[[Step], None]
_NOTHING = msgspec.structs.asdict(Measured())


class Card(msgspec.Struct):
    """What is gathered of one card while it is checked."""

    gpu_id: str
    index: int
    said: Inventory
    measured: Measured = Measured()
    notes: tuple[str, ...] = ()
    doing: str = ""


async def check(
    depth: Depth, data: Path, told: Told, extra: Sequence[str] = (), kernel_log: Path = KERNEL_LOG
) -> tuple[HostFacts, tuple[CardFacts, ...]]:
    """Check this machine; `told` hears of each step. `extra` are arguments for the child (a processor in a card's place)."""
    began = time.monotonic()
    cards = list_cards() or ([Card(gpu_id="cpu", index=0, said=Inventory(model="processor", memory_mib=0))] if "cpu" in extra else [])
    machine = await asyncio.to_thread(host, data, usable_memory_mib())
    samples: dict[str, list[Sample]] = {card.gpu_id: [] for card in cards}
    xids: list[Xid] = []
    if cards:
        watching = asyncio.ensure_future(_telemetry(samples, xids, kernel_log))
        try:
            await _work(cards, depth, told, extra)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
    evidence = await diagnosed(depth) if cards and "cpu" not in extra else ()
    facts = HostFacts(evidence=evidence, depth=depth, took_s=round(time.monotonic() - began, 1), torch=_torch(), host=machine)
    return facts, tuple(_facts(card, samples[card.gpu_id], xids) for card in cards)


def list_cards() -> list[Card]:
    """The cards that their drivers list and this process may use (`CUDA_VISIBLE_DEVICES`, by UUID)."""
    visible = {each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.startswith("GPU-")}
    with opened() as there:
        found = [_card(each) for each in there]
    return [card for card in found if not visible or card.gpu_id in visible]


def _card(each: Listed) -> Card:
    try:
        return Card(gpu_id=each.uuid(), index=each.index, said=each.vendor.inventory(each.number))
    except Gone as error:
        gone = Measured(lost=True)
        return Card(gpu_id=f"card-{each.index}", index=each.index, said=Inventory(model="unknown", memory_mib=0), measured=gone, notes=(str(error),))


async def _telemetry(samples: dict[str, list[Sample]], xids: list[Xid], kernel_log: Path) -> None:
    async for report in reports(SAMPLE_S, kernel_log):
        for sample in report.samples:
            samples.setdefault(sample.gpu_id, []).append(sample)
        xids += report.xids


async def _work(cards: Sequence[Card], depth: Depth, told: Told, extra: Sequence[str]) -> None:
    """Run the child to its end, or until it has been silent for too long."""
    there = [card for card in cards if not card.measured.lost]
    if not there:
        return
    command = [sys.executable, "-m", "headframe.agent.steps", "--cards", str(len(there)), "--depth", depth, *extra]
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL, limit=LINE_BYTES_MAX,
        env={**os.environ, **bound([card.gpu_id for card in there])},
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    complaint = asyncio.ensure_future(child.stderr.read(LINE_BYTES_MAX))
    hung = False
    try:
        async for step in _steps(child.stdout, SILENT_S[depth]):
            _take(there[step.card], step)
            told(step)
        hung = not child.stdout.at_eof()
    finally:
        killed = await _ended(child)
        said = (await complaint).decode("utf-8", "replace").strip().splitlines() if killed else []
        complaint.cancel()
        for card in there:
            _close(card, hung=hung, unkillable=not killed, said=said[-1][:300] if said and child.returncode else "")


async def _steps(stream: asyncio.StreamReader, silent_s: float) -> AsyncIterator[Step]:
    while True:
        line = await line_within(stream, silent_s)
        if not line:
            return
        with contextlib.suppress(msgspec.DecodeError):  # a library that prints is not our child speaking
            yield msgspec.json.decode(line, type=Step)


async def _ended(child: asyncio.subprocess.Process) -> bool:
    """Whether the child is gone: one that waits for its driver can't be killed."""
    try:
        with contextlib.suppress(ProcessLookupError):
            if child.returncode is None and child.stdout and not child.stdout.at_eof():
                child.kill()
        await asyncio.wait_for(child.wait(), KILL_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        return False
    return True


def _take(card: Card, step: Step) -> None:
    card.doing = step.name if step.begins else ""
    if step.result:
        card.measured = merged(card.measured, step.result)
    if step.error:
        card.notes = (*card.notes, f"{step.name}: {step.error}")
        if step.broken:
            card.measured = msgspec.structs.replace(card.measured, device_error=f"{step.name}: {step.error}")


def _close(card: Card, *, hung: bool, unkillable: bool, said: str) -> None:
    """What was begun and never told of its end."""
    if unkillable:
        card.measured = msgspec.structs.replace(card.measured, hung=True)
    if card.doing:
        why = "did not end in time" if hung else f"the test ended in the middle{f': {said}' if said else ''}"
        card.notes = (*card.notes, f"{card.doing}: {why}")
    elif said:
        card.notes = (*card.notes, said)


def merged(before: Measured, result: Measured) -> Measured:
    """One step's results with those before: errors add up, anything else is new."""
    known = {name: value for name, value in msgspec.structs.asdict(result).items() if value != _NOTHING[name]}
    added = {name: value + (getattr(before, name) or 0) for name, value in known.items() if name.endswith("_errors")}
    return msgspec.structs.replace(before, **{**known, **added})


def _facts(card: Card, samples: Sequence[Sample], xids: Sequence[Xid]) -> CardFacts:
    measured = merged(card.measured, _seen(samples, [xid.code for xid in xids if xid.slot == card.said.slot]))
    return CardFacts(gpu_id=card.gpu_id, index=card.index, card=card.said, measured=measured, notes=card.notes)


def _seen(samples: Sequence[Sample], codes: Sequence[int]) -> Measured:
    """What telemetry saw meanwhile: shares of the samples, the link under load, how counters grew."""
    if not samples:
        return Measured(xids=tuple(codes))
    seen = window(samples)
    replays = [each.replays for each in samples if each.replays is not None]
    errors = [each.ecc_uncorrected for each in samples if each.ecc_uncorrected is not None]
    return Measured(
        xids=tuple(codes), lost=not all(each.present for each in samples), temperature_c=seen.temperature_c,
        memory_temperature_c=seen.memory_temperature_c, software_thermal=seen.software_thermal, hardware_thermal=seen.hardware_thermal,
        hardware_slowdown=seen.hardware_slowdown, power_brake=seen.power_brake, power_w=seen.power_w, link_gen=seen.link_gen, link_width=seen.link_width,
        replays=max(0, replays[-1] - replays[0]) if replays else None, ecc_new_uncorrected=max(0, errors[-1] - errors[0]) if errors else None,
    )  # fmt: skip


def has_torch() -> bool:
    """Whether the checks' child can do anything."""
    return bool(_torch())


def _torch() -> str:
    """PyTorch's version, without loading it; "" where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch")
    except PackageNotFoundError:
        return ""
