"""Pages that are one file and need nothing else: of a replay (figures of several policies beside one another, and their course), and of a fleet's plan."""

from collections.abc import Callable, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape

from headframe.console.charts import columns, lines
from headframe.model.pivot import FleetPlan
from headframe.model.report import Report, Sample
from headframe.model.units import duration


def page(reports: Sequence[Report], style: str) -> str:
    """HTML; `style` is the console's style sheet, which goes into the page."""
    charts: tuple[tuple[str, str, Callable[[Sample], float]], ...] = (
        ("GPUs held", "% of all", lambda sample: sample.held),
        ("GPUs stranded: free, but of no use to a typical request", "% of all", lambda sample: sample.stranded),
        ("Jobs waiting", "jobs", lambda sample: float(sample.waiting)),
    )
    drawn = [
        (title, unit, lines([(report.policy, [(sample.at_h, read(sample)) for sample in report.samples]) for report in reports], title, unit))
        for title, unit, read in charts
    ]
    groups = [group.name for group in reports[0].groups]
    return _template("report.html").render(reports=reports, charts=drawn, groups=groups, style=style)


def plan_page(plan: FleetPlan, style: str) -> str:
    """A fleet's plan as HTML; `style` as above."""
    drawn = [case for case in plan.sensitivity if "thirty" not in case.what]  # beside it nothing else would be seen
    top = max((abs(amount) for case in drawn for amount in (case.keep_usd, case.plan_usd)), default=1.0) or 1.0
    pairs = [(f"{case.what}: {name} {amount:,.0f} US$", max(0, round(1000 * amount / top))) for case in drawn
             for name, amount in (("kept on", case.keep_usd), ("by the plan", case.plan_usd))]  # fmt: skip
    chart = columns(pairs, "US$ a month for each case: kept on, then by the plan")
    return _template("plan.html").render(plan=plan, chart=chart, style=style)


def _template(name: str) -> Template:
    environment = Environment(loader=PackageLoader("headframe.console"), autoescape=select_autoescape(), undefined=StrictUndefined)
    environment.filters["span"] = _span
    return environment.get_template(name)


def _span(seconds: float) -> str:
    return duration(int(seconds * 1000))
