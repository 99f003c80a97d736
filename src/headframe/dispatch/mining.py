"""What mining pays, from a coin's own terms; and which of two tellings of them to believe.

Formulas: https://en.bitcoin.it/wiki/Mining (expected coins are the share of the network's hashes, times the blocks' rewards).
"""

import math

from headframe.model.power import Asic, Coin, Filler, Mines

DAY_S, HOURS_A_DAY = 86_400.0, 24.0
JUMP_MOST = 10.0
"""A coin whose worth per hash changed by more than this since it was last told is not believed without a person's word: a feed that lost a digit is
likelier than such a day."""


def usd_per_hash_day(coin: Coin) -> float:
    """US$ that one hash a second earns in a day, before fees."""
    return coin.price_usd * coin.reward * DAY_S / coin.block_s / coin.network_hs


def usd_h(filler: Filler, mines: Mines, coin: Coin | None) -> float | None:
    """US$ an hour that a card earns with a filler, before its power; None where that can't be known."""
    if not filler.coin:
        return filler.usd_gpu_h
    if coin is None:
        return None
    return usd_per_hash_day(coin) * mines.hashes_s * (1 - filler.pool_fee) * (1 - filler.program_fee) / HOURS_A_DAY


def asic_usd_h(asic: Asic, coin: Coin | None, pool_fee: float = 0.02) -> float | None:
    """US$ an hour of an ASIC at full speed, before its power."""
    return None if coin is None else usd_per_hash_day(coin) * asic.hashes_s * (1 - pool_fee) / HOURS_A_DAY


def break_even_usd_kwh(earns_usd_h: float, wall_w: float) -> float:
    """The power price at which an earner of so much, drawing so much at the wall, earns nothing."""
    return earns_usd_h / (wall_w / 1000) if wall_w > 0 else math.inf


def why_not_believed(before: Coin | None, told: Coin) -> str:
    """Why a coin's new terms are not taken; "" where they are."""
    numbers = {"price": told.price_usd, "network": told.network_hs, "block": told.block_s, "reward": told.reward}
    for name, value in numbers.items():
        if not math.isfinite(value) or value <= 0:
            return f"{told.id}: its {name} is {value:g}"
    if before is None:
        return ""
    ratio = usd_per_hash_day(told) / usd_per_hash_day(before)
    if not 1 / JUMP_MOST <= ratio <= JUMP_MOST:
        return f"{told.id}: a hash would be worth {ratio:g} times what it was"
    return ""
