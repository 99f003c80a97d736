"""The pages Power and Economics: what the watts are spent on, the next two days, what is shed next; what cards brought and cost. Values to HTML."""

from collections.abc import Sequence

from headframe.console.charts import lines, stacked
from headframe.console.views import Frame, page
from headframe.model.power_api import FillerView, ModelNow, PowerView, Profit, ProfitHour
from headframe.model.units import clock

COLOURS = {"sold": 2, "served": 7, "batch": 1, "spot": 6, "fillers": 0, "mining machines": 3, "idle": 5}
"""A use has one colour everywhere; firmest at the bottom of a column."""


def power(frame: Frame, found: PowerView, fillers: Sequence[FillerView]) -> str:
    """A site's power, now and next."""
    shown = found.hours
    uses = [name for name in COLOURS if any(name in hour.by_use_w for hour in shown)]
    layers = [(name, [hour.by_use_w.get(name, 0.0) / 1000 for hour in shown], COLOURS[name]) for name in uses]
    chart = (
        stacked(
            [clock(hour.start_ms)[11:13] for hour in shown],
            layers,
            [hour.limit_w / 1000 or None for hour in shown],
            "what is to run, by hour, and the limit",
            "kW",
        )
        if shown
        else None
    )
    price = [(float(n), hour.usd_kwh * 100) for n, hour in enumerate(shown)]
    marginal = [(float(n), hour.marginal_usd_kwh * 100) for n, hour in enumerate(shown)]
    prices = (
        lines([("price", price), ("what one more kWh would be worth", marginal)], "price of power and its marginal worth", "US¢/kWh")
        if shown
        else None
    )
    return page("power.html", frame, found=found, chart=chart, prices=prices, fillers=fillers, layers=[(name, COLOURS[name]) for name in uses],
                earns=sum(use.earns_usd_h for use in found.uses), pays=sum(use.power_usd_h for use in found.uses))  # fmt: skip


def economics(frame: Frame, now: Sequence[ModelNow], hours: Sequence[ProfitHour], models: Sequence[Profit], by: str, days: int) -> str:
    """What cards do now and could, and what the last days brought, by the hour and by what is asked for."""
    layers = [("sold", [hour.sold_usd for hour in hours], 2), ("mined", [hour.mined_usd for hour in hours], 0)]
    names = [clock(hour.start_ms)[11:13] if len(hours) <= 48 else clock(hour.start_ms)[5:10] for hour in hours]
    chart = (
        stacked(names, layers, [hour.energy_usd for hour in hours], "what was sold and mined, by hour, and what the energy cost", "US$")
        if hours
        else None
    )
    spread = (
        lines(
            [("left for each kWh", [(float(n), max(0.0, hour.net_usd / hour.kwh * 100) if hour.kwh else 0.0) for n, hour in enumerate(hours)])],
            "what was left for each kWh",
            "US¢/kWh",
        )
        if hours
        else None
    )
    total = [sum(getattr(row, name) for row in models) for name in ("sold_nano", "mined_nano", "energy_nano", "net_nano")]
    return page(
        "economics.html", frame, now=now, chart=chart, spread=spread, models=models, by=by, days=days, total=total, kwh=sum(row.kwh for row in models)
    )
