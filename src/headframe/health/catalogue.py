"""The models that are known, and which of them a card claims to be. A card that is not in the table is still graded, by measurement."""

import csv
import re
from collections.abc import Iterable, Sequence
from functools import cache

import msgspec

from headframe.model.health import Inventory

_NOISE = frozenset([
    "NVIDIA", "AMD", "ATI", "GEFORCE", "TESLA", "RADEON", "INSTINCT", "QUADRO", "GENERATION", "EDITION", "SERVER", "WORKSTATION", "GPU", "GRAPHICS",
    "SERIES", "CORPORATION",
])  # fmt: skip
_MEMORY = re.compile(r"(\d+)GB?")
_FORM = re.compile(r"PCIE|SXM\d?|NVL")
_KIND = re.compile(r"HBM\w*|GDDR\w*")
_TOLERANCE = 0.12
"""How far a card's memory may be from its model's: 24 GB cards with ECC on show 22.5 GiB, 12 rarely 12.0."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is expected to do; None where no source was found. Units as in `data/README.md`."""

    name: str
    vendor: str
    capability: str
    memory_gib: float
    memory_type: str
    memory_gb_s: float | None
    half_tflops: float | None
    fp32_tflops: float | None
    pcie_gen: int | None
    pcie_lanes: int | None


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a card can be, going by its name and memory, and what in it disagrees: its chip, or its memory."""

    model: Model | None
    wrong_chip: str = ""
    wrong_memory: str = ""


@cache
def catalogue(text: str) -> tuple[Model, ...]:
    """The table of `gpus.csv`."""
    return tuple(_model(row) for row in csv.DictReader(text.splitlines()))


def _model(row: dict[str, str]) -> Model:
    gen, lanes = _number(row["pcie_gen"]), _number(row["pcie_lanes"])
    return Model(
        name=row["model"], vendor=row["vendor"].lower(), capability=row["compute_capability_or_gfx"],
        memory_gib=float(row["vram_gib"]), memory_type=row["memory_type"], memory_gb_s=_number(row["memory_bandwidth_gb_s"]),
        half_tflops=_number(row["fp16_tensor_tflops_dense"]), fp32_tflops=_number(row["fp32_tflops"]),
        pcie_gen=None if gen is None else int(gen), pcie_lanes=None if lanes is None else int(lanes),
    )  # fmt: skip


def _number(text: str) -> float | None:
    return float(text) if text else None


def claim(models: Sequence[Model], card: Inventory) -> Claim:
    """Which model `card` is. A known name on a chip that such a card never had is a counterfeit: 1060 boards are sold as 1660, with a
    VBIOS that says so. A memory that none of the known cards of that name has is a modified one, or a variant that is not in the table.
    """
    named = [model for model in models if _same_name(model.name, card.model)]
    if not named:
        return Claim(model=None)
    stated = _MEMORY.search(card.model.upper())
    sizes = {float(stated[1])} & {model.memory_gib for model in named} if stated else set[float]()
    fitting = [model for model in named if _fits(model, card) and (not sizes or model.memory_gib in sizes)]
    best = min(fitting or named, key=lambda model: (not _agree(model, card.model), abs(card.memory_mib / 1024 - model.memory_gib), model.name))
    if card.compute_capability and best.capability and best.vendor == card.vendor and card.compute_capability != best.capability:
        what = "has compute capability" if card.vendor == "nvidia" else "is"
        chip = f"calls itself {best.name} but its chip {what} {card.compute_capability}, not {best.capability}"
        return Claim(model=best, wrong_chip=chip)
    if not fitting:
        known = " or ".join(f"{size:g} GiB" for size in sorted(sizes or {model.memory_gib for model in named}))
        return Claim(model=best, wrong_memory=f"calls itself {card.model} but has {card.memory_mib / 1024:.1f} GiB, not {known}")
    return Claim(model=best)


def _fits(model: Model, card: Inventory) -> bool:
    return abs(card.memory_mib / 1024 - model.memory_gib) <= _TOLERANCE * model.memory_gib


def _same_name(known: str, said: str) -> bool:
    """All words but those of maker, memory and form have to be the same, in any order: a "Ti" or "Laptop" more is another card."""
    return _words(known) == _words(said)


def _agree(model: Model, said: str) -> bool:
    """Whether the form (PCIe, SXM) and the memory's kind, where the card says one, are the model's."""
    form, kind = _FORM.search(said.upper()), _KIND.search(said.upper())
    known = _FORM.search(model.name.upper())
    return (not form or not known or form[0][:3] == known[0][:3]) and (not kind or kind[0] == model.memory_type.upper())


def _words(name: str) -> frozenset[str]:
    return frozenset(_kept(re.split(r"[^A-Z0-9]+", re.sub(r"\(.*", "", name.upper()))))


def _kept(words: Iterable[str]) -> Iterable[str]:
    for word in words:
        if word and word not in _NOISE and not any(pattern.fullmatch(word) for pattern in (_MEMORY, _FORM, _KIND)):
            yield from re.findall(r"RTX|GTX|RX(?=\d)|CMP|[A-Z]*\d+[A-Z]*|[A-Z]+", word)
