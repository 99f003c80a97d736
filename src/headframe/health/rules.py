"""The rules, one row each: which reading, beside which limit, leaves at best which grade, or in service is how bad, and why.

An operator changes limits in one file (`limits.toml`: rule = number); what a rule concludes is not theirs to change. Where a
rule's source is "ours", no vendor or published practice gives a value.
"""

import operator
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from headframe.model.errors import BadRequest
from headframe.model.fleet import Grade
from headframe.model.health import Cause, Finding, Level

_C, _G = Cause, Grade
_COMPARE = {"<": operator.lt, ">": operator.gt, "≤": operator.le, "≥": operator.ge}


class Rule(msgspec.Struct, frozen=True):
    """Fires where the reading `datum` compares so with `limit`. `have` formats the reading; `need` the limit, "" where there is
    nothing to ask for. `leaves` is the best grade left, or how bad it is in service, once it has been so for `hold_ms`.
    """

    name: str
    datum: str
    when: Literal["<", ">", "≤", "≥"]
    limit: float
    leaves: Grade | Level
    cause: Cause
    have: str
    why: str
    source: str
    need: str = ""
    mend: str = ""
    hold_ms: int = 0

    def fires(self, value: float) -> bool:
        """Whether a reading trips it."""
        return bool(_COMPARE[self.when](value, self.limit))

    def found(self, value: float) -> Finding:
        """What it says of a reading."""
        cap, level = (self.leaves, None) if isinstance(self.leaves, Grade) else (None, self.leaves)
        return Finding(rule=self.name, cause=self.cause, have=self.have.format(value), need=self.need.format(self.limit), why=self.why,
                       source=self.source, cap=cap, level=level, mend=self.mend)  # fmt: skip


def fired(rules: Iterable[Rule], values: Mapping[str, float | None]) -> list[Rule]:
    """The rules that these readings trip; what is not known trips none."""
    return [rule for rule in rules if (value := values[rule.datum]) is not None and rule.fires(value)]


def told(rules: Iterable[Rule], values: Mapping[str, float | None]) -> tuple[Finding, ...]:
    """The findings of rules that fired, worst first: the first rule of a reading speaks for the milder ones."""
    first: dict[str, Rule] = {}
    for rule in rules:
        first.setdefault(rule.datum, rule)
    return tuple(rule.found(values[rule.datum] or 0) for rule in first.values())


_WRONG = "no workload tolerates wrong results"
_DCGM = "DCGM 4.6 and Azure's health checks fail on the same"
_OURS = "ours"

RULES: tuple[Rule, ...] = (
    # A card that gives wrong results, or goes away, is worth nothing to anybody.
    Rule("repeat", "repeat_errors", ">", 0, _G.REJECT, _C.ARITHMETIC, "{:.0f} products differed when repeated", _WRONG, "arXiv 2605.04213: 1 % of silent corruptions show as NaN"),
    Rule("golden", "golden_errors", ">", 0, _G.REJECT, _C.ARITHMETIC, "{:.0f} known products came out wrong", _WRONG, "imbue-ai/cluster-health compares products likewise"),
    Rule("readback", "readback_errors", ">", 0, _G.REJECT, _C.LINK, "{:.0f} values differed after a copy to the card and back", _WRONG, _OURS),
    Rule("peer-data", "peer_errors", ">", 0, _G.REJECT, _C.LINK, "{:.0f} values differed after a copy between cards", _WRONG, _OURS),
    Rule("lost", "lost", ">", 0, _G.REJECT, _C.SUPPLY, "fell off the bus under test", "work on it is lost", "Xid 79"),
    Rule("hung", "hung", ">", 0, _G.REJECT, _C.DRIVER, "its test could not be ended", "a wedged card holds its processes for ever", _OURS),
    Rule("device-error", "device_failed", ">", 0, _G.REJECT, _C.DRIVER, "the driver reported an error under test", "work on it fails", _OURS),
    Rule("uncorrected", "ecc_new_uncorrected", ">", 0, _G.REJECT, _C.MEMORY, "{:.0f} uncorrected ECC errors under test", _WRONG, _DCGM),
    Rule("remap-failed", "remap_failed", ">", 0, _G.REJECT, _C.MEMORY, "a failed row could not be remapped", "NVIDIA replaces such a card", "NVIDIA GPU Memory Error Management, RMA policy"),
    Rule("sram", "sram_threshold", ">", 0, _G.REJECT, _C.MEMORY, "SRAM errors are over NVIDIA's threshold", "NVIDIA replaces such a card", "NVIDIA GPU Memory Error Management, RMA policy"),
    Rule("retired-full", "retired_pages", "≥", 63, _G.REJECT, _C.MEMORY, "{:.0f} memory pages retired", "the table holds 64", "DCGM 4.6", "< {:.0f}"),
    Rule("pattern-ecc", "pattern_errors_ecc", ">", 0, _G.REJECT, _C.MEMORY, "{:.0f} memory cells read back wrong in spite of ECC", _WRONG, _OURS),
    Rule("xid", "xids_fatal", ">", 0, _G.REJECT, _C.DRIVER, "{:.0f} fatal Xids under test", "the driver gave the card up", "NVIDIA Xid catalogue"),
    # A miner's share check discards wrong results; a model's weights do not.
    Rule("pattern", "pattern_errors", ">", 0, _G.MINING_ONLY, _C.MEMORY, "{:.0f} memory cells read back wrong", "a miner's share check discards wrong results, a model's weights do not", _OURS),
    Rule("memory-least", "memory_gib", "<", 5.5, _G.MINING_ONLY, _C.SIZE, "{:.1f} GiB of memory", "a 7B model at 4 bits does not fit", _OURS, "≥ {:g} GiB"),
    Rule("arch", "arch_missing", ">", 0, _G.MINING_ONLY, _C.SOFTWARE, "PyTorch has no code for its chip", "AI images don't run on it", _OURS),
    Rule("chip", "wrong_chip", ">", 0, _G.MINING_ONLY, _C.IDENTITY, "is not what it says", "its name was written by whoever sold it", _OURS),
    Rule("crippled", "best_tflops", "<", 1, _G.MINING_ONLY, _C.SPEED, "{:.2f} TFLOP/s at best", "too slow for any model", "mining cards are throttled by fuse", "≥ {:g} TFLOP/s"),
    # Batch: slow to load or to compute, or throttled; what stays on the card still runs.
    Rule("h2d-batch", "h2d_gb_s", "<", 2.5, _G.BATCH, _C.LINK, "{:.2f} GB/s from the host", "loading a model takes longer than serving it pays", "Vast.ai's self-test refuses < 2.85", "≥ {:g} GB/s"),
    Rule("width-batch", "link_width", "≤", 2, _G.BATCH, _C.LINK, "a link of {:.0f} lanes under load", "loading a model takes longer than serving it pays", _OURS, "> {:g} lanes"),
    Rule("rate-batch", "best_tflops", "<", 5, _G.BATCH, _C.SPEED, "{:.2f} TFLOP/s at best", "answers take longer than people wait", _OURS, "≥ {:g} TFLOP/s"),
    Rule("thermal", "hardware_thermal", ">", 0.02, _G.BATCH, _C.HEAT, "throttled by heat in {:.0%} of samples", "clocks are halved when it is too hot", "DCGM 4.6 fails a diagnostic on any", "≤ {:.0%}"),
    Rule("slowdown", "hardware_slowdown", ">", 0.02, _G.BATCH, _C.SUPPLY, "slowed by its hardware in {:.0%} of samples", "supply or heat is at its limit", "DCGM 4.6 fails a diagnostic on any", "≤ {:.0%}"),
    Rule("brake", "power_brake", ">", 0, _G.BATCH, _C.SUPPLY, "braked by its power supply in {:.0%} of samples", "an external signal says that supply or cabling is short", "DCGM 4.6"),
    Rule("junction-hot", "memory_temperature_c", "≥", 105, _G.BATCH, _C.HEAT, "memory at {:.0f} °C", "GDDR6X is rated to 95 °C and gives way from 105", "Micron; igorslab.de", "< {:g} °C"),
    Rule("memory-odd", "wrong_memory", ">", 0, _G.BATCH, _C.IDENTITY, "has a memory that no known card of its name has", "its VBIOS may have been changed", _OURS),
    # Inference: good while the model stays on the card.
    Rule("h2d-inference", "h2d_gb_s", "<", 6, _G.INFERENCE, _C.LINK, "{:.2f} GB/s from the host", "training streams its data over this link", _OURS, "≥ {:g} GB/s"),
    Rule("width-inference", "link_width", "≤", 4, _G.INFERENCE, _C.LINK, "a link of {:.0f} lanes under load", "training streams its data over this link", _OURS, "> {:g} lanes"),
    Rule("memory-inference", "memory_gib", "<", 15.5, _G.INFERENCE, _C.SIZE, "{:.1f} GiB of memory", "gradients and optimiser state don't fit", _OURS, "≥ {:g} GiB"),
    Rule("rate-share", "rate_share", "<", 0.6, _G.INFERENCE, _C.SPEED, "{:.0%} of the model's nominal rate", "something is wrong with it", "stas00/ml-engineering: healthy cards reach 73 to 87 %", "≥ {:.0%}"),
    Rule("rate-share-amd", "rate_share_amd", "<", 0.4, _G.INFERENCE, _C.SPEED, "{:.0%} of the model's nominal rate", "something is wrong with it", "stas00/ml-engineering: healthy cards reach 51 to 68 %", "≥ {:.0%}"),
    Rule("memory-share", "memory_share", "<", 0.75, _G.INFERENCE, _C.MEMORY, "{:.0%} of the model's memory bandwidth", "memory is slowed, by heat or by a setting", "healthy cards reach 79 to 92 %: memtest_vulkan, H200 notes", "≥ {:.0%}"),
    Rule("peers-inference", "peer_share", "<", 0.9, _G.INFERENCE, _C.SPEED, "{:.0%} of the rate of its equals", "slower than the fleet's own cards of this model", _OURS, "≥ {:.0%}"),
    Rule("soak-inference", "soak_loss", ">", 0.1, _G.INFERENCE, _C.HEAT, "lost {:.0%} of its speed while all cards worked", "heat or supply give way under full load", _OURS, "≤ {:.0%}"),
    Rule("soft-thermal", "software_thermal", ">", 0.1, _G.INFERENCE, _C.HEAT, "held back by heat in {:.0%} of samples", "the driver lowers clocks to stay cool", "ours; DCGM 4.6 fails a diagnostic on any", "≤ {:.0%}"),
    Rule("junction-warm", "memory_temperature_c", "≥", 95, _G.INFERENCE, _C.HEAT, "memory at {:.0f} °C", "GDDR6X is rated to 95 °C", "Micron", "< {:g} °C"),
    Rule("remap-pending", "remap_pending", ">", 0, _G.INFERENCE, _C.MEMORY, "a failed memory row waits for a reset to be remapped", "it is in use until then", "gpud resets likewise"),
    Rule("retire-pending", "retired_pending", ">", 0, _G.INFERENCE, _C.MEMORY, "a failed memory page waits for a reset to be retired", "it is in use until then", "gpud resets likewise"),
    Rule("retired-many", "retired_pages", "≥", 10, _G.INFERENCE, _C.MEMORY, "{:.0f} memory pages retired", "its memory is wearing out", "facebookresearch/gcm", "< {:.0f}"),
    Rule("replays", "replays", ">", 100, _G.INFERENCE, _C.LINK, "{:.0f} PCIe replays under test", "the link makes errors and sends again", "ours; DCGM 4.6 allows 80", "≤ {:g}"),
    Rule("offset", "memory_offset_mhz", ">", 0, _G.INFERENCE, _C.DRIVER, "memory runs {:.0f} MHz over its clock", "an overclock left by mining corrupts results silently", _OURS, "no offset"),
    # Training on one machine: a synchronous job goes at the pace of its slowest card.
    Rule("h2d-train", "h2d_gb_s", "<", 10, _G.TRAIN, _C.LINK, "{:.2f} GB/s from the host", "jobs over many machines move gradients over this link", _OURS, "≥ {:g} GB/s"),
    Rule("width-train", "link_width", "≤", 8, _G.TRAIN, _C.LINK, "a link of {:.0f} lanes under load", "jobs over many machines move gradients over this link", _OURS, "> {:g} lanes"),
    Rule("ecc", "ecc_missing", ">", 0, _G.TRAIN, _C.ECC, "no ECC", "bit flips grow with cards times hours", _OURS),
    Rule("peers-train", "peer_share", "<", 0.95, _G.TRAIN, _C.SPEED, "{:.0%} of the rate of its equals", "a synchronous job goes at the pace of its slowest card", "SuperBench: 5 % under the baseline is defective", "≥ {:.0%}"),
    Rule("soak-train", "soak_loss", ">", 0.03, _G.TRAIN, _C.HEAT, "lost {:.0%} of its speed while all cards worked", "a synchronous job goes at the pace of its slowest card", _OURS, "≤ {:.0%}"),
    Rule("fabric", "fabric_gbit_s", "<", 100, _G.TRAIN, _C.FABRIC, "{:.0f} Gb/s between machines", "gradients have to travel between machines", _OURS, "≥ {:g} Gb/s"),
    Rule("pair", "pair_missing", ">", 0, _G.TRAIN, _C.FABRIC, "not tried together with a machine known to be good", "one slow machine slows a whole job", "CoreWeave and DCGM try pairs likewise"),
)  # fmt: skip

NODE_RULES: tuple[Rule, ...] = (
    Rule("host-errors", "cpu_errors", ">", 0, _G.REJECT, _C.HOST, "{:.0f} products of the processor differed when repeated", _WRONG, _OURS),
    Rule("ram-batch", "memory_ratio", "<", 0.5, _G.BATCH, _C.HOST, "{:.2f} of its cards' memory as RAM", "models are loaded through RAM", "Vast.ai asks for as much RAM as GPU memory", "≥ {:g}"),
    Rule("threads", "threads_per_gpu", "<", 2, _G.BATCH, _C.HOST, "{:.1f} processor threads per card", "cards wait for their processor", "Vast.ai asks for 2 cores per card", "≥ {:g}"),
    Rule("ram-inference", "memory_ratio", "<", 1, _G.INFERENCE, _C.HOST, "{:.2f} of its cards' memory as RAM", "datasets don't fit beside the models", "Vast.ai asks for as much RAM as GPU memory", "≥ {:g}"),
    Rule("mixed", "models", ">", 1, _G.INFERENCE, _C.MIXED, "{:.0f} models of card in one machine", "one job wants equal cards", _OURS, "one model"),
    Rule("edac", "edac_uncorrected", ">", 0, _G.INFERENCE, _C.HOST, "{:.0f} uncorrected memory errors of the host", "results may be wrong", _OURS),
    Rule("smart", "disks_failing", ">", 0, _G.BATCH, _C.HOST, "{:.0f} drives say that they fail", "what lies on them will be lost", "the drive's own verdict (SMART)", mend="replace the drive"),
    Rule("disk", "disk_mb_s", "<", 200, _G.INFERENCE, _C.HOST, "a disk of {:.0f} MB/s", "a 20 GB model takes minutes to load", _OURS, "≥ {:g} MB/s"),
)  # fmt: skip

_MIN10_MS = 600_000
_HEAT10 = "gpud looks at 10 minutes"
_W, _B = Level.WARN, Level.BAD
_COOL, _RESEAT, _RESET, _RMA = "clean and cool it", "reseat it, look at riser, cable and supply", "reset it once it is idle", "have it replaced"

WATCH_RULES: tuple[Rule, ...] = (
    Rule("missing", "missing", ">", 0, _B, _C.SUPPLY, "is not there any more", "work on it is lost", "gpud; below the enrolment record", mend=_RESEAT),
    Rule("lemon", "faults", ">", 2.5, _W, _C.SUPPLY, "{:.1f} faults lately, older ones counting less", "few cards cause most faults: it is the last choice until it is repaired", "arXiv 2410.21680 finds 40 lemon nodes so; arXiv 2503.11901: 4 cards made 90 % of all uncontained errors", "≤ {:g}", "look at its supply and riser, or replace it"),
    Rule("flaps", "losses_7d", "≥", 3, _B, _C.SUPPLY, "went missing {:.0f} times in 7 days", "it will go again", "ours; gpud sends to hands after 2 reboots", "< {:g}", _RESEAT),
    Rule("answer-bad", "answer_s", ">", 30, _B, _C.DRIVER, "the driver took {:.0f} s to answer", "the driver is wedged", "ours; NVSentinel has the same watchdog", "≤ {:g} s", "reboot the machine"),
    Rule("recovery", "recovery_bad", ">", 0, _B, _C.DRIVER, "the driver asks for a reset or reboot", "it said so itself", "nvml.h, field 230", mend=_RESET),
    Rule("uncorrected-now", "ecc_uncorrected", ">", 0, _B, _C.MEMORY, "{:.0f} uncorrected ECC errors", _WRONG, "DCGM 4.6; facebookresearch/gcm", mend=_RESET),
    Rule("remap-failed-now", "remap_failed", ">", 0, _B, _C.MEMORY, "a failed row could not be remapped", "NVIDIA replaces such a card", "NVIDIA GPU Memory Error Management, RMA policy", mend=_RMA),
    Rule("sram-now", "sram_threshold", ">", 0, _B, _C.MEMORY, "SRAM errors are over NVIDIA's threshold", "NVIDIA replaces such a card", "NVIDIA GPU Memory Error Management, RMA policy", mend=_RMA),
    Rule("retired-now", "retired_pages", "≥", 63, _B, _C.MEMORY, "{:.0f} memory pages retired", "the table holds 64", "DCGM 4.6", "< {:g}", _RMA),
    Rule("corrected-bad", "ecc_corrected", ">", 20_000_000, _B, _C.MEMORY, "{:.0f} corrected ECC errors", "uncorrected ones follow", "Azure's health checks", "≤ {:.0f}", _RMA),
    Rule("nvlink-down", "nvlinks_down", ">", 0, _B, _C.LINK, "{:.0f} NVLinks are down", "jobs over several cards hang or crawl", "NVIDIA Health Validation", mend=_RESEAT),
    Rule("nvlink-crc", "nvlink_crc_s", "≥", 100, _B, _C.LINK, "{:.0f} NVLink CRC errors a second", "the link sends again and again", "DCGM 4.6", "< {:g}", _RESEAT),
    Rule("replays-bad", "replay_share", ">", 10, _B, _C.LINK, "{:.0f} times the PCIe replays that its link may have", "the link makes errors", "10 x DCGM 4.6's (ours)", "≤ {:g}", _RESEAT),
    Rule("gen-short", "gen_short", ">", 0, _B, _C.LINK, "its link is {:.0f} generations below its record, under load", "copies take twice as long for each", _OURS, mend=_RESEAT, hold_ms=_MIN10_MS),
    Rule("brake-now", "power_brake", ">", 0, _B, _C.SUPPLY, "braked by its power supply in {:.0%} of samples", "an external signal says that supply or cabling is short", "DCGM 4.6", mend=_RESEAT),
    Rule("thermal-bad", "hardware_thermal", ">", 0.02, _B, _C.HEAT, "throttled by heat in {:.0%} of samples", "clocks are halved when it is too hot", _HEAT10, "≤ {:.0%}", _COOL, _MIN10_MS),
    Rule("slowdown-bad", "hardware_slowdown", ">", 0.02, _B, _C.SUPPLY, "slowed by its hardware in {:.0%} of samples", "supply or heat is at its limit", _HEAT10, "≤ {:.0%}", _RESEAT, _MIN10_MS),
    Rule("soft-thermal-bad", "software_thermal", ">", 0.1, _B, _C.HEAT, "held back by heat in {:.0%} of samples", "the driver lowers clocks to stay cool", _HEAT10, "≤ {:.0%}", _COOL, _MIN10_MS),
    Rule("junction-bad", "memory_temperature_c", "≥", 105, _B, _C.HEAT, "memory at {:.0f} °C", "GDDR6X is rated to 95 °C and gives way from 105", "Micron; igorslab.de", "< {:g} °C", _COOL, _MIN10_MS),
    Rule("clock-bad", "clock_share", "<", 0.85, _B, _C.SPEED, "clocks at {:.0%} of its equals'", "jobs go at the pace of their slowest card", _OURS, "≥ {:.0%}", _COOL, _MIN10_MS),
    Rule("hot", "margin_c", "≤", 5, _W, _C.HEAT, "{:.0f} °C below its slowdown", "a little warmer, and it throttles", "NVSentinel ADR-042", "> {:g} °C", _COOL),
    Rule("junction", "memory_temperature_c", "≥", 95, _W, _C.HEAT, "memory at {:.0f} °C", "GDDR6X is rated to 95 °C", "Micron", "< {:g} °C", _COOL),
    Rule("thermal-warn", "hardware_thermal", ">", 0, _W, _C.HEAT, "throttled by heat in {:.0%} of samples", "clocks are halved when it is too hot", "DCGM 4.6 fails a diagnostic on any", mend=_COOL),
    Rule("slowdown-warn", "hardware_slowdown", ">", 0, _W, _C.SUPPLY, "slowed by its hardware in {:.0%} of samples", "supply or heat is at its limit", "DCGM 4.6 fails a diagnostic on any", mend=_RESEAT),
    Rule("soft-thermal-warn", "software_thermal", ">", 0.02, _W, _C.HEAT, "held back by heat in {:.0%} of samples", "the driver lowers clocks to stay cool", _OURS, "≤ {:.0%}", _COOL),
    Rule("clock-warn", "clock_share", "<", 0.95, _W, _C.SPEED, "clocks at {:.0%} of its equals'", "jobs go at the pace of their slowest card", "SuperBench uses 5 %", "≥ {:.0%}", _COOL),
    Rule("width-short", "width_short", ">", 0, _W, _C.LINK, "its link lacks {:.0f} lanes of its record, under load", "copies take longer", _OURS, mend=_RESEAT),
    Rule("replays-warn", "replay_share", ">", 1, _W, _C.LINK, "{:.1f} times the PCIe replays that its link may have", "the link makes errors", "DCGM 4.6: ceil(lanes x factor) a minute", "≤ {:g}", _RESEAT),
    Rule("power-odd", "power_odd", ">", 0, _W, _C.SUPPLY, "reads {:.1f} times its power limit", "its sensor, or its limit, is not to be trusted", "NVIDIA Health Validation has a window likewise", mend="look at its supply"),
    Rule("pending-now", "remap_pending", ">", 0, _W, _C.MEMORY, "a failed memory row waits for a reset to be remapped", "it is in use until then", "gpud", mend=_RESET),
    Rule("retired-warn", "retired_pages", "≥", 10, _W, _C.MEMORY, "{:.0f} memory pages retired", "its memory is wearing out", "facebookresearch/gcm", "< {:g}", "plan to replace it"),
    Rule("corrected-warn", "ecc_corrected", ">", 10_000, _W, _C.MEMORY, "{:.0f} corrected ECC errors", "uncorrected ones may follow", "Azure's health checks", "≤ {:.0f}", "watch it"),
    Rule("recovery-p2p", "recovery_p2p", ">", 0, _W, _C.DRIVER, "the driver asks that jobs over several cards end", "it said so itself", "nvml.h, field 230", mend=_RESET),
    Rule("answer-warn", "answer_s", ">", 2, _W, _C.DRIVER, "the driver took {:.1f} s to answer", "it may be about to hang", _OURS, "≤ {:g} s", "watch it"),
)  # fmt: skip
UNCLEAN = Rule("unclean", "unclean", ">", 0, _B, _C.SOFTWARE, "could not be handed over clean", "the next tenant would meet what the last one left", "ours",
               mend="stop what is on it, and reset it").found(1)  # fmt: skip
"""A card on which work could not start: the event of its end says what was found there."""


class Rules(msgspec.Struct, frozen=True):
    """The tables in force: those of grading cards and machines, and those of cards in service."""

    cards: tuple[Rule, ...] = RULES
    nodes: tuple[Rule, ...] = NODE_RULES
    watch: tuple[Rule, ...] = WATCH_RULES


def limited(text: str) -> Rules:
    """All tables with the limits of an operator's TOML file; see `with_limits`."""
    return Rules(with_limits(RULES, text), with_limits(NODE_RULES, text), with_limits(WATCH_RULES, text))


def with_limits(rules: Sequence[Rule], text: str) -> tuple[Rule, ...]:
    """The rules with the limits of an operator's TOML file; raises BadRequest for what is no rule or no number, and changes nothing then."""
    try:
        own = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadRequest(f"the limits can't be read: {error}", "each line is: rule = number") from error
    known = {rule.name for rule in (*RULES, *NODE_RULES, *WATCH_RULES)}
    for name, limit in own.items():
        if name not in known:
            raise BadRequest(f"no rule {name!r}", f"the rules are {', '.join(sorted(known))}")
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise BadRequest(f"the limit of {name} is a number, not {limit!r}")
    return tuple(msgspec.structs.replace(rule, limit=float(own.get(rule.name, rule.limit))) for rule in rules)
