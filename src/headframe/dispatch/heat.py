"""Heat: what air can carry away from a rack whose own exhaust comes round in part, and how fast its inlet follows what it draws. Pure.

One resistance and one capacity: the inlet moves to where it settles, T = supply + returned x P / (AIR x flow), as a first-order lag. It is the model that HPE's sustain-lc
steps (blade_group_modeling), with the rack's air and metal as the capacity.
"""

import math

AIR_J_M3_K = 1.2 * 1005.0
"""What a cubic metre of air takes up for each degree (density at sea level, kg/m3, times specific heat, J/kg/K)."""
INLET_MOST_C = 35.0
"""ASHRAE's allowable inlet for class A2 (Thermal Guidelines, 5th edition, 2021); GPUs lose clock before."""
RETURNED = 0.1
"""The share of the exhaust's rise that comes round to inlets: 0.05 to 0.10 in rows with containment, more without."""
TAU_S = 300.0
"""How long a rack takes for two thirds of the way: an assumption, some minutes for servers' metal and the air around it. A site's own is better."""


def carried_w(airflow_m3_s: float, supply_c: float, inlet_most_c: float = INLET_MOST_C, returned: float = RETURNED) -> float:
    """The heat (W) that a rack may give off for ever so that the inlet stays below `inlet_most_c`. 0 where the supply is too warm already."""
    if airflow_m3_s <= 0 or returned <= 0:
        return 0.0
    return max(0.0, (inlet_most_c - supply_c) * AIR_J_M3_K * airflow_m3_s / returned)


def settled_c(watts: float, airflow_m3_s: float, supply_c: float, returned: float = RETURNED) -> float:
    """Where the inlet settles (C) under so many watts and so much air."""
    return supply_c + returned * watts / (AIR_J_M3_K * airflow_m3_s)


def after_c(inlet_c: float, settles_c: float, seconds: float, tau_s: float = TAU_S) -> float:
    """The inlet after some time on its way; exact for any step."""
    return settles_c + (inlet_c - settles_c) * math.exp(-max(0.0, seconds) / tau_s)


def reaches_s(inlet_c: float, settles_c: float, inlet_most_c: float = INLET_MOST_C, tau_s: float = TAU_S) -> float:
    """Seconds until the inlet passes `inlet_most_c`: 0 where it has, infinity where it never will."""
    if inlet_c >= inlet_most_c:
        return 0.0
    if settles_c <= inlet_most_c:
        return math.inf
    return tau_s * math.log((settles_c - inlet_c) / (settles_c - inlet_most_c))
