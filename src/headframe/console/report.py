"""The page of a replay: figures of several policies beside one another, and their course. One file that needs nothing else."""

from collections.abc import Callable, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from headframe.console.charts import lines
from headframe.model.report import Report, Sample
from headframe.model.units import duration


def page(reports: Sequence[Report], style: str) -> str:
    """HTML; `style` is the console's style sheet, which goes into the page."""
    environment = Environment(loader=PackageLoader("headframe.console"), autoescape=select_autoescape(), undefined=StrictUndefined)
    environment.filters["span"] = _span
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
    return environment.get_template("report.html").render(reports=reports, charts=drawn, groups=groups, style=style)


def _span(seconds: float) -> str:
    return duration(int(seconds * 1000))
