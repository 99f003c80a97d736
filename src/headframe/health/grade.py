"""What a card, and a machine, is good for: facts beside the rules, the lowest cap counts; and what would raise it.

Never a pass by absence: a card of which a needed step has no result is `unmeasured`, unless what is known already condemns it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import msgspec

from headframe.health.catalogue import Claim, Model, claim
from headframe.health.rules import NODE_RULES, RULES, Rule, Rules, fired, told
from headframe.health.xid import slot
from headframe.model.fleet import Gpu, Grade, Graded
from headframe.model.health import CardCheck, CardFacts, Cause, Finding, Grading, Host, HostFacts, Inventory, Measured, NodeCheck
from headframe.model.units import MS_PER_HOUR

VALID_MS = 30 * 24 * MS_PER_HOUR
"""A grade is good for so long (ours): cards age, and dust settles."""
PEERS_LEAST = 8
"""So many results of equal cards replace the maker's figures (SuperBench learns its baseline likewise)."""
NEEDED = {"h2d_gb_s": "copies from the host", "memory_gb_s": "memory bandwidth", "tflops": "matrix products", "soak_loss": "the soak",
          "pattern_errors": "memory patterns"}  # fmt: skip
LANE_GB_S = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938}
"""What one lane carries by PCIe generation, each way, in theory."""
LINK_SHARE = 0.85
"""What copies reach of it (measured on many boards)."""
FATAL_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140, 143, 158, 167, 171, 172})
FLOATS = frozenset({"float32", "float16", "bfloat16"})
"""What any model can be run in: rates at 8 bits are told, and not compared."""
_RANK = {grade: rank for rank, grade in enumerate(Grade)}
_FINAL = frozenset({Cause.SIZE, Cause.ECC, Cause.SOFTWARE, Cause.IDENTITY, Cause.ARITHMETIC})
"""Nothing mends these."""
_MENDS = {
    Cause.LINK: "in a wider or faster slot, without its riser,",
    Cause.HEAT: "cooled (dust, paste, memory pads, fans)",
    Cause.SUPPLY: "with supply and cables mended",
    Cause.MEMORY: "after a reset, or with its memory cooler and at stock clocks, if it then passes",
    Cause.SPEED: "at the speed of its equals",
    Cause.DRIVER: "after a reset with stock clocks, if it then passes",
    Cause.FABRIC: "on a network of 100 Gb/s, tried with a machine known to be good,",
    Cause.HOST: "with the machine's RAM, processor or disk mended",
    Cause.MIXED: "among cards of its own model",
}


OURS = Rules()


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One card to be graded: what it says, what was measured, which model it claims to be, the median rate of at least PEERS_LEAST
    equal cards, and the network of its machine.
    """

    card: Inventory
    measured: Measured
    claim: Claim
    peers_tflops: float | None = None
    host: Host | None = None


def examined(
    models: Sequence[Model], host: HostFacts, cards: Sequence[CardFacts], peers_tflops: Callable[[CardFacts], float | None], rules: Rules = OURS
) -> NodeCheck:
    """A machine's facts graded: each card, and what they are good for together."""
    checked = tuple(_examined(models, host, each, peers_tflops(each), rules) for each in cards)
    graded = [(each.facts.card, each.grading.grade) for each in checked]
    return NodeCheck(facts=host, cards=checked, grading=grade_node(host.host, graded, rules.nodes))


def _examined(models: Sequence[Model], host: HostFacts, facts: CardFacts, peers_tflops: float | None, rules: Rules) -> CardCheck:
    claimed = claim(models, facts.card)
    case = Case(card=facts.card, measured=facts.measured, claim=claimed, peers_tflops=peers_tflops, host=host.host)
    return CardCheck(facts=facts, model=claimed.model.name if claimed.model else "", grading=grade(case, rules.cards))


def typical(rates: Sequence[float]) -> float | None:
    """The median, where there are enough results to trust it."""
    return median(rates) if len(rates) >= PEERS_LEAST else None


def grade(case: Case, rules: Sequence[Rule] = RULES) -> Grading:
    """The card's grade with its reasons and what would raise it."""
    found = _known(case, rules)
    return Grading(grade=_lowest(found), findings=found, raises=tuple(_raises(case, rules)))


def grade_node(host: Host, cards: Sequence[tuple[Inventory, Grade]], rules: Sequence[Rule] = NODE_RULES) -> Grading:
    """What several of a machine's cards together are good for: the lowest grade among those that may work, and the machine's own
    limits. Cards that are rejected are fenced and do not count.
    """
    good = [(card, each) for card, each in cards if each not in {Grade.REJECT, Grade.UNMEASURED}]
    found = _findings(host_readings(host, [card for card, _ in good]), rules)
    worst = max((each for _, each in good), key=_RANK.__getitem__, default=Grade.UNMEASURED)
    return Grading(grade=max((worst, _lowest(found)), key=_RANK.__getitem__) if cards else _lowest(found), findings=found)


def readings(case: Case) -> dict[str, float | None]:
    """Every reading that rules look at, by name."""
    card, measured, model = case.card, case.measured, case.claim.model
    best = max((rate for dtype, rate in (measured.tflops or {}).items() if dtype in FLOATS), default=None)
    half = half_tflops(measured)
    amd = card.vendor == "amd"
    share = _share(half, model and model.half_tflops)
    ecc = bool(card.ecc)
    return {
        **numbers(card), **numbers(measured),
        "memory_gib": card.memory_mib / 1024,
        "best_tflops": best,
        "rate_share": None if amd else share,
        "rate_share_amd": share if amd else None,
        "peer_share": _share(half, case.peers_tflops),
        "memory_share": _share(measured.memory_gb_s, model and model.memory_gb_s),
        "pattern_errors": None if ecc else measured.pattern_errors,
        "pattern_errors_ecc": measured.pattern_errors if ecc else None,
        "xids_fatal": len(FATAL_XIDS & set(measured.xids)),
        "device_failed": bool(measured.device_error),
        "arch_missing": measured.arch_supported is False,
        "wrong_chip": bool(case.claim.wrong_chip),
        "wrong_memory": bool(case.claim.wrong_memory),
        "ecc_missing": not ecc,
        "fabric_gbit_s": 0 if case.host is None else case.host.fabric_gbit_s or 0,
        "pair_missing": not (case.host and case.host.pair_passed),
    }  # fmt: skip


def host_readings(host: Host, cards: Sequence[Inventory]) -> dict[str, float | None]:
    """Every reading of a machine that rules look at, by name."""
    memory = sum(card.memory_mib for card in cards)
    return {
        **numbers(host),
        "memory_ratio": host.memory_mib / memory if memory else None,
        "threads_per_gpu": host.threads / len(cards) if cards else None,
        "models": len({card.model for card in cards}) or None,
    }


def remarks(card: Inventory) -> Iterator[str]:
    """How a card is set, where that is not as its maker does: no fault, and often left by mining."""
    limit, usual = card.power_limit_w, card.power_default_w
    if limit and usual and limit != usual:
        yield f"its power limit is {limit} W, its maker's {usual} W: it is compared with cards at an equal limit"
    for what, offset in (("core", card.core_offset_mhz), ("memory", card.memory_offset_mhz)):
        if offset:
            yield f"its {what} clock is set {offset:+} MHz off its maker's: that is undone before work starts"
    if card.persistence is False:
        yield "its driver is unloaded while nobody uses it, so work starts seconds later: `nvidia-smi -pm 1`"


def stale(graded: Graded, gpu: Gpu, now_ms: int) -> str:
    """Why a grade no longer holds, "" where it does: it is too old, or the card is not as it was checked."""
    if now_ms - graded.at_ms > VALID_MS:
        return "its check is older than 30 days"
    now = (("VBIOS", graded.vbios, gpu.vbios), ("driver", graded.driver, gpu.driver), ("slot", graded.slot, slot(gpu.pci_bus)),
           ("power limit", f"{graded.power_limit_w or 0} W", f"{gpu.max_w} W"))  # fmt: skip
    return next((f"its {name} changed from {before or 'unknown'} to {after or 'unknown'}" for name, before, after in now if before != after), "")


def numbers(facts: msgspec.Struct) -> dict[str, float | None]:
    """The facts that are numbers, or yes and no, by name."""
    values: Mapping[str, Any] = msgspec.structs.asdict(facts)
    return {name: value for name, value in values.items() if value is None or isinstance(value, int | float)}


def half_tflops(measured: Measured) -> float | None:
    """The rate at 16 bits, by which cards are compared."""
    rates = measured.tflops or {}
    return max((rate for dtype, rate in rates.items() if dtype in {"float16", "bfloat16"}), default=None)


def _share(have: float | None, whole: float | None) -> float | None:
    return have / whole if have is not None and whole else None


def _findings(values: Mapping[str, float | None], rules: Sequence[Rule]) -> tuple[Finding, ...]:
    return told(sorted(fired(rules, values), key=lambda rule: -_RANK[_cap(rule)]), values)  # stable: the table's order within


def _cap(rule: Rule) -> Grade:
    assert isinstance(rule.leaves, Grade), f"{rule.name} is no rule of grading"
    return rule.leaves


def _known(case: Case, rules: Sequence[Rule]) -> tuple[Finding, ...]:
    """All findings, contradictions in the card's own words; first what has no result, unless the card is condemned without it."""
    said = {"chip": case.claim.wrong_chip, "memory-odd": case.claim.wrong_memory, "device-error": case.measured.device_error,
            "fabric": "" if case.host and case.host.fabric_gbit_s else "no network for it is known"}  # fmt: skip
    found = [msgspec.structs.replace(each, have=said.get(each.rule) or each.have) for each in _findings(readings(case), rules)]
    missing = [what for datum, what in NEEDED.items() if getattr(case.measured, datum) is None]
    condemned = any(each.cap in {Grade.REJECT, Grade.MINING_ONLY} for each in found)
    if missing and not condemned:
        none = Finding(rule="unmeasured", cause=Cause.UNMEASURED, have=f"no result of {', '.join(missing)}", need="", source="ours", cap=Grade.UNMEASURED,
                       why="nothing is passed by absence")  # fmt: skip
        return (none, *found)
    return tuple(found)


def _lowest(found: Iterable[Finding]) -> Grade:
    return max((each.cap for each in found if each.cap), key=_RANK.__getitem__, default=Grade.TRAIN_MULTI)


def _raises(case: Case, rules: Sequence[Rule]) -> Iterator[str]:
    """Step by step: mend what holds the card at its grade, see where it then stands, go on until something can't be mended."""
    mended: set[Cause] = set()
    for _ in Cause:
        left = [each for each in _known(case, rules) if each.cause not in mended]
        now = _lowest(left)
        holding = sorted({each.cause for each in left if each.cap is now})
        if Cause.UNMEASURED in holding:
            yield "it has to be measured: `headframe node qualify`"
        if not holding or Cause.UNMEASURED in holding or not _FINAL.isdisjoint(holding):
            return
        mended |= set(holding)
        better = _better_link(case, rules, mended, now) if Cause.LINK in holding else None
        how = [_slot(better) if cause is Cause.LINK and better else _MENDS[cause] for cause in holding]
        if better:
            case, mended = better, mended - {Cause.LINK}
        yield f"{' and '.join(how)} this card grades `{_lowest(each for each in _known(case, rules) if each.cause not in mended)}`"


def _better_link(case: Case, rules: Sequence[Rule], mended: set[Cause], now: Grade) -> Case | None:
    """The card in the narrowest slot in which it grades better than `now`."""
    model = case.claim.model
    gen = case.card.link_gen_max or (model and model.pcie_gen)
    most = case.card.link_width_max or (model and model.pcie_lanes)
    for lanes in (4, 8, 16) if gen in LANE_GB_S and most else ():
        rate = lanes * LANE_GB_S[gen or 1] * LINK_SHARE
        measured = msgspec.structs.replace(case.measured, link_gen=gen, link_width=lanes, h2d_gb_s=rate, d2h_gb_s=rate, replays=0)
        better = msgspec.structs.replace(case, measured=measured)
        grades = _lowest(each for each in _known(better, rules) if each.cause not in mended - {Cause.LINK})
        if lanes <= (most or 0) and _RANK[grades] < _RANK[now]:
            return better
    return None


def _slot(case: Case) -> str:
    return f"on a gen{case.measured.link_gen} x{case.measured.link_width} slot"
