"""The checks' child: PyTorch does a card's work, one line of JSON for each step. It decides nothing, and may be killed at any time.

Inputs are random: zeros make a card up to 13 % faster than work does. Each step is small enough to lose. What is measured alone comes
first, one card after the other, since cards may share a link; then all cards work at once, as they will when they are sold.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import torch

from headframe.agent.checks import list_cards
from headframe.agent.helper import PowerLimit, ask
from headframe.agent.sweep import swept
from headframe.model.health import Depth, Measured, Step

GB, TERA, MIB = 1e9, 1e12, 1024 * 1024
GOLDEN_SEED, GOLDEN_TOLERANCE = 20_260_101, {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest error beside a product in 64 bits, as a part of the largest value: rounding of 256 terms, with room."""
ODD = 0x9E3779B97F4A7C15 - (1 << 64)
"""Knuth's multiplier as a signed number: neighbouring addresses get patterns that share no bits."""
FREE_SHARE = 0.9
PRODUCT_MOST_S, SETTLE_S, LENT_S = 0.2, 1.0, 60


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """How much of each: a card's, or small ones for a processor in its place."""

    copy_mib: int
    product: int
    pattern_mib: int
    chunk_mib: int


CARD, PROCESSOR = Sizes(copy_mib=256, product=8192, pattern_mib=0, chunk_mib=256), Sizes(copy_mib=4, product=192, pattern_mib=4, chunk_mib=1)
SECONDS = {
    Depth.QUICK: {"product": 1.0, "pattern": 14.0, "soak": 35.0}, Depth.FULL: {"product": 10.0, "pattern": 600.0, "soak": 1800.0},
    Depth.IDLE: {"product": 5.0, "pattern": 300.0, "soak": 800.0, "cap": 4.0},
}  # fmt: skip
_lock = threading.Lock()


class Bench:
    """One card and what is done with it."""

    def __init__(self, card: int, device: torch.device, seconds: dict[str, float]) -> None:
        self.card, self.device, self.seconds = card, device, seconds
        self.real = device.type == "cuda"
        self.sizes = CARD if self.real else PROCESSOR
        self.random = torch.Generator(device=device).manual_seed(card + 1)

    def sync(self) -> None:
        """Wait until the card has done what it was told to."""
        if self.real:
            torch.cuda.synchronize(self.device)

    def noise(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Random numbers on the card."""
        return torch.randn(*shape, generator=self.random, device=self.device).to(dtype)

    def rate(self, act: Callable[[], object], least_s: float, batch: int = 4) -> float:
        """How often a second, after one round that does not count."""
        act()
        self.sync()
        began, count = time.perf_counter(), 0
        while True:
            for _ in range(batch):
                act()
            self.sync()
            count += batch
            if (took := time.perf_counter() - began) >= least_s:
                return count / took


def arch(bench: Bench) -> Measured:
    """Whether this PyTorch has code for the card's chip."""
    if not bench.real:
        return Measured(arch_supported=True)
    if torch.version.hip:
        return Measured(arch_supported=torch.cuda.get_device_properties(bench.device).gcnArchName.split(":")[0] in torch.cuda.get_arch_list())
    major, minor = torch.cuda.get_device_capability(bench.device)
    known = [int(name.split("_")[1].rstrip("af")) for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    return Measured(arch_supported=any(code // 10 == major and code % 10 <= minor for code in known))


def golden(bench: Bench) -> Measured:
    """Products of inputs made on the host, beside the same in 64 bits; and each twice, bit by bit."""
    source = torch.Generator().manual_seed(GOLDEN_SEED)
    left, right = torch.randn(256, 256, generator=source), torch.randn(256, 256, generator=source)
    wrong = differ = 0
    for dtype in _dtypes(bench):
        a, b = left.to(dtype), right.to(dtype)
        truth = a.double() @ b.double()
        there_a, there_b = a.to(bench.device), b.to(bench.device)
        first = there_a @ there_b
        error = (first.double().cpu() - truth).abs().max() / truth.abs().max()
        wrong += not bool(error <= GOLDEN_TOLERANCE[dtype])  # a NaN is no number below it
        differ += sum(not torch.equal(first, there_a @ there_b) for _ in range(8))
    return Measured(golden_errors=wrong, repeat_errors=differ)


def copies(bench: Bench) -> Measured:
    """Host to card and back, through pinned memory, the best of some; what comes back has to be what was sent."""
    count = bench.sizes.copy_mib * MIB // 8
    sent = torch.randint(-(1 << 62), 1 << 62, (count,), dtype=torch.int64, pin_memory=bench.real)
    back, there = torch.empty_like(sent, pin_memory=bench.real), torch.empty(count, dtype=torch.int64, device=bench.device)
    to = max(bench.rate(lambda: there.copy_(sent, non_blocking=True), 0.15, 1) for _ in range(3))
    fro = max(bench.rate(lambda: back.copy_(there, non_blocking=True), 0.15, 1) for _ in range(3))
    size = sent.nbytes / GB
    return Measured(h2d_gb_s=to * size, d2h_gb_s=fro * size, readback_errors=int((back != sent).sum()))


def peers(bench: Bench) -> Measured:
    """To the next card and back, as the driver does it: directly, or through the host."""
    cards = torch.cuda.device_count() if bench.real else 0
    if cards < 2:
        return Measured()
    other = torch.device("cuda", (bench.card + 1) % cards)
    sent = torch.randint(-(1 << 62), 1 << 62, (64 * MIB // 8,), dtype=torch.int64, device=bench.device, generator=bench.random)
    there = sent.to(other)
    often = bench.rate(lambda: there.copy_(sent, non_blocking=True), 0.3)
    return Measured(peer_gb_s=often * sent.nbytes / GB, peer_errors=int((there.to(bench.device) != sent).sum()))


def memory(bench: Bench) -> Measured:
    """Copies within the card's memory: each byte is read and written."""
    source = bench.noise(bench.sizes.copy_mib * MIB // 4)
    target = torch.empty_like(source)
    return Measured(memory_gb_s=2 * source.nbytes / GB * bench.rate(lambda: target.copy_(source), 0.5, 8))


def pattern(bench: Bench) -> Measured:
    """Address patterns and their complements over most of the free memory, written and read again until time is up."""
    free_mib = int(torch.cuda.mem_get_info(bench.device)[0] * FREE_SHARE) // MIB if bench.real else bench.sizes.pattern_mib
    each = bench.sizes.chunk_mib * MIB // 8
    chunks = [torch.empty(each, dtype=torch.int64, device=bench.device) for _ in range(max(1, free_mib // bench.sizes.chunk_mib - 3))]
    base, errors, until = torch.arange(each, dtype=torch.int64, device=bench.device) * ODD, 0, time.perf_counter() + bench.seconds["pattern"]
    rounds = 0
    while rounds < 2 or time.perf_counter() < until:
        for number, chunk in enumerate(chunks):
            torch.bitwise_xor(base, _salt(number, rounds), out=chunk)
        for number, chunk in enumerate(chunks):
            errors += int((chunk != base ^ _salt(number, rounds)).sum())
        rounds += 1
    return Measured(pattern_errors=errors)


def _salt(number: int, rounds: int) -> int:
    """Another one for each chunk and pair of rounds; the second round of a pair is the complement of the first."""
    salt = (number << 20) + rounds // 2
    return ~salt if rounds % 2 else salt


def products(bench: Bench) -> Measured:
    """Square products per dtype, in 10^12 operations a second, and each once more at the end, bit by bit."""
    rates: dict[str, float] = {}
    differ = 0
    for kind in (*(str(dtype).removeprefix("torch.") for dtype in _dtypes(bench)), *EIGHT_BITS):
        try:
            side = _side(bench, kind)
            act = _product(bench, kind, side)
            first = act().clone()
            rates[kind] = 2 * side**3 / TERA * bench.rate(act, bench.seconds["product"])
            differ += not torch.equal(first, act())
        except (RuntimeError, NotImplementedError) as error:
            if kind not in EIGHT_BITS or "CUDA error" in str(error):
                raise
            continue  # the card, or this PyTorch, has no such product
    return Measured(tflops=rates, repeat_errors=differ)


EIGHT_BITS = ("int8", "float8")


def _product(bench: Bench, kind: str, side: int) -> Callable[[], torch.Tensor]:
    """A product of two random square matrices, the same at each call."""
    if kind == "int8":
        a, b = (torch.randint(-128, 128, (side, side), dtype=torch.int8, device=bench.device, generator=bench.random) for _ in range(2))
        b = b.t()  # stored by columns, as the integer units take it: by rows an H200 is 15 times slower
        return lambda: torch._int_mm(a, b)  # noqa: SLF001 # pyright: ignore[reportPrivateImportUsage] - the only way to the card's integer units
    if kind == "float8":
        a, b = (bench.noise(side, side).to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device=bench.device)
        return lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)  # noqa: SLF001 # pyright: ignore[reportPrivateImportUsage]
    dtype = getattr(torch, kind)
    a, b = bench.noise(side, side, dtype=dtype), bench.noise(side, side, dtype=dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def soak(bench: Bench) -> Measured:
    """The fastest products for long, with all other cards: by how much the last fifth is slower than the first, and whether bits differ."""
    act = _fastest(bench)
    first, differ = act().clone(), 0
    slice_s, rates, until = bench.seconds["soak"] / 40, [], time.perf_counter() + bench.seconds["soak"]
    while time.perf_counter() < until or len(rates) < 5:
        rates.append(bench.rate(act, slice_s))
        differ += not torch.equal(first, act())
    fifth = len(rates) // 5
    loss = 1 - sum(rates[-fifth:]) / sum(rates[:fifth])
    return Measured(soak_loss=max(0.0, loss), repeat_errors=differ)


def _fastest(bench: Bench) -> Callable[[], torch.Tensor]:
    """A product in the card's best type, of a size that takes a fraction of a second."""
    kind = str(_dtypes(bench)[-1]).removeprefix("torch.")
    return _product(bench, kind, _side(bench, kind))


def _side(bench: Bench, kind: str) -> int:
    """The largest side whose product takes a fraction of a second: old cards are 60 times slower at 16 bits than at 32."""
    side = min(1024, bench.sizes.product)
    took_s = 1 / bench.rate(_product(bench, kind, side), 0.0, 1)
    while side < bench.sizes.product and took_s * 8 <= PRODUCT_MOST_S:
        side, took_s = side * 2, took_s * 8
    return side


def caps(bench: Bench) -> Measured:
    """Training (the fastest products) and decoding (a matrix by a vector) under lower power limits. Without the helper nothing is set, and nothing measured."""
    said = list_cards()[bench.card]
    full_w = said.said.power_limit_w or said.said.power_default_w
    if not full_w:  # never above what is set now: it may be what the supply can bear
        return Measured()
    best = _dtypes(bench)[-1]
    matrix, vector = bench.noise(bench.sizes.product, bench.sizes.product, dtype=best), bench.noise(bench.sizes.product, 1, dtype=best)
    acts = {"training": _fastest(bench), "decoding": lambda: matrix @ vector}

    def worked(act: Callable[[], object]) -> Callable[[], tuple[float, float]]:
        def rate() -> tuple[float, float]:
            bench.rate(act, SETTLE_S)
            first = bench.rate(act, bench.seconds["cap"] / 2)
            watts = torch.cuda.power_draw(bench.device) / 1000
            return (first + bench.rate(act, bench.seconds["cap"] / 2)) / 2, watts

        return rate

    uuid = said.gpu_id
    found, why = swept(
        full_w,
        lambda watts: ask(PowerLimit(gpu_id=uuid, watts=watts, for_s=LENT_S)).error,  # killed in between, the helper sets it back
        lambda: ask(PowerLimit(gpu_id=uuid, watts=full_w)),
        {kind: worked(act) for kind, act in acts.items()},
    )
    if why and not found:
        tell(Step(card=bench.card, name="power limits", error=f"not swept: {why}"))
    return Measured(caps=found or None)


ALONE = {"chip": arch, "known products": golden, "copies": copies, "peers": peers}
SWEPT = {"power limits": caps}
"""At depth `idle` only: it takes a minute, and sets limits."""
TOGETHER = {"memory bandwidth": memory, "memory patterns": pattern, "matrix products": products, "soak": soak}


def _dtypes(bench: Bench) -> list[torch.dtype]:
    """Those the card has, its best last."""
    if not bench.real:
        return [torch.float32, torch.bfloat16]
    brain = torch.cuda.get_device_capability(bench.device)[0] >= 8
    return [torch.float32, torch.float16, *([torch.bfloat16] if brain else [])]


def tell(step: Step) -> None:
    """One line, whole, whichever card's thread says it."""
    with _lock:
        sys.stdout.write(msgspec.json.encode(step).decode() + "\n")
        sys.stdout.flush()


def run(bench: Bench, steps: dict[str, Callable[[Bench], Measured]]) -> bool:
    """All `steps` of one card; a broken one ends them. Whether the card is still to be trusted with more."""
    for name, step in steps.items():
        tell(Step(card=bench.card, name=name, begins=True))
        try:
            tell(Step(card=bench.card, name=name, result=step(bench)))
        except torch.OutOfMemoryError:
            tell(Step(card=bench.card, name=name, error="not enough free memory on the card: something else holds it"))
        except RuntimeError as error:
            tell(Step(card=bench.card, name=name, error=str(error).splitlines()[0][:300], broken=bench.real))
            return False
        if bench.real:
            torch.cuda.empty_cache()
    return True


def main(arguments: list[str]) -> None:
    """Check so many cards: those that CUDA numbers from 0, as the parent named them to it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cards", type=int, default=1)
    parser.add_argument("--depth", type=Depth, default=Depth.QUICK)
    parser.add_argument("--hurry", type=float, default=1.0, help="divides all times; what is measured then says little")
    chosen = parser.parse_args(arguments)
    seconds = {name: value / chosen.hurry for name, value in SECONDS[chosen.depth].items()}
    torch.backends.cuda.matmul.allow_tf32 = False
    benches = list(_benches(chosen.device, chosen.cards, seconds))
    good = [bench for bench in benches if run(bench, ALONE)]
    together = {**TOGETHER, **(SWEPT if chosen.depth is Depth.IDLE and chosen.device == "cuda" else {})}
    threads = [threading.Thread(target=run, args=(bench, together)) for bench in good]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _benches(kind: str, cards: int, seconds: dict[str, float]) -> Iterator[Bench]:
    for card in range(cards):
        if kind == "cuda" and card >= torch.cuda.device_count():
            tell(Step(card=card, name="chip", error="PyTorch does not see this card", broken=False))
            continue
        yield Bench(card, torch.device(kind, card) if kind == "cuda" else torch.device("cpu"), seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
