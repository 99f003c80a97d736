"""Heat: what air can carry away, and how warm cards get. A first-order (RC) model: per card C dT/dt = P - (T - T_in) / R; the inlet is the supply's air, warmed by what comes
round from the racks' exhaust. The form is that of HPE's sustain-lc (blade_group_modeling); the defaults' sources stand beside them.
"""

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
AIR_J_M3_K = 1.2 * 1005.0
"""What a cubic metre of air takes up for each degree (density at sea level, kg/m3, times specific heat, J/kg/K)."""
INLET_MOST_C = 35.0
"""ASHRAE's allowable inlet for class A2 (Thermal Guidelines, 5th edition, 2021); GPUs lose clock before."""


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """A card with its cooler: degrees per watt, joules per degree. The default is an H100's class (time constant 63 s); a 350 W card of the consumer kind has about 0.14 K/W."""

    r_k_w: float = 0.07
    c_j_k: float = 900.0


def carried_w(airflow_m3_s: float, supply_c: float, inlet_most_c: float = INLET_MOST_C, returned: float = 0.1) -> float:
    """The heat that a rack may give off so that its own inlet stays below `inlet_most_c`, where the share `returned` of the exhaust's rise comes round:
    T_in = supply + returned x P / (AIR x flow).
    """
    if airflow_m3_s <= 0 or returned <= 0:
        return 0.0
    return max(0.0, (inlet_most_c - supply_c) * AIR_J_M3_K * airflow_m3_s / returned)


def inlets(supply_c: float, rack_w: Floats, airflow_m3_s: Floats, returned: Floats) -> Floats:
    """Inlet temperature of each rack. `returned[i, j]` is the share of rack j's rise that reaches rack i."""
    rise = rack_w / (AIR_J_M3_K * airflow_m3_s)
    return supply_c + returned @ rise


def warmed(card_c: Floats, card_w: Floats, inlet_c: Floats, body: Body, step_s: float) -> Floats:
    """Card temperatures after a step at constant power: the exact solution, so that any step is stable."""
    settled = inlet_c + card_w * body.r_k_w
    return settled + (card_c - settled) * np.exp(-step_s / (body.r_k_w * body.c_j_k))
