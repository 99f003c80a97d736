"""Heat: what air can carry away from a rack whose own exhaust comes round in part. Pure."""

AIR_J_M3_K = 1.2 * 1005.0
"""What a cubic metre of air takes up for each degree (density at sea level, kg/m3, times specific heat, J/kg/K)."""
INLET_MOST_C = 35.0
"""ASHRAE's allowable inlet for class A2 (Thermal Guidelines, 5th edition, 2021); GPUs lose clock before."""
RETURNED = 0.1
"""The share of the exhaust's rise that comes round to inlets: 0.05 to 0.10 in rows with containment, more without."""


def carried_w(airflow_m3_s: float, supply_c: float, inlet_most_c: float = INLET_MOST_C, returned: float = RETURNED) -> float:
    """The heat (W) that a rack may give off so that the inlet stays below `inlet_most_c`: T_in = supply + returned x P / (AIR x flow), the steady state of the first-order
    model that HPE's sustain-lc steps (blade_group_modeling). 0 where the supply is too warm already.
    """
    if airflow_m3_s <= 0 or returned <= 0:
        return 0.0
    return max(0.0, (inlet_most_c - supply_c) * AIR_J_M3_K * airflow_m3_s / returned)
