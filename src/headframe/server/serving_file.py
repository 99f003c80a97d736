"""What a workload file says of an endpoint: its port, model, replicas, scaling, probe and pricing, to a `Serving`."""

import difflib
import re
from typing import Any, Protocol

import yaml

from headframe.model.serving import Metric, Prewarm, Pricing, Serving
from headframe.model.units import parse_duration_s, parse_usd

KEYS = ("port", "model", "replicas", "scaling", "probe", "prewarm", "idle_timeout", "start_timeout", "pricing")
REPLICAS_MAX = 1000
PREWARM_MAX = 50
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(rf"(daily|{'|'.join(_DAYS)})(?:-({'|'.join(_DAYS)}))?\s+(\d\d?):(\d\d)\s*-\s*(\d\d?):(\d\d)\s*[=:]\s*(\d{{1,4}})")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@-]{0,199}")
_PATH = re.compile(r"/[A-Za-z0-9._~/?=&%-]{0,199}")


class Reader(Protocol):
    """Collects mistakes while values are read."""

    def wrong(self, node: yaml.Node, key: str, expected: str, nearest: str = "") -> None: ...
    def fields(self, node: yaml.Node, where: str, known: Any, synonyms: dict[str, str]) -> dict[str, yaml.Node]: ...
    def text(self, node: yaml.Node, key: str) -> str: ...
    def read(self, node: yaml.Node, key: str, expected: str, parse_text: Any, default: Any) -> Any: ...


def serving(found: dict[str, yaml.Node], reader: Reader) -> Serving:
    """How it is served; mistakes are the reader's."""
    said: dict[str, Any] = {}
    if "port" in found:
        said["port"] = reader.read(found["port"], "port", "1 to 65535", lambda text: _whole(text, 1, 65_535), 8000)
    if "model" in found:
        said["model"] = reader.read(found["model"], "model", "a name such as Qwen/Qwen3-8B", _matching(_MODEL), "")
    if "replicas" in found:
        said["replicas_min"], said["replicas_max"] = reader.read(
            found["replicas"], "replicas", f"a number or a range such as 0..4, at most {REPLICAS_MAX}", _replicas, (1, 1)
        )
    if "probe" in found:
        said["probe"] = reader.read(found["probe"], "probe", "a path such as /health", _matching(_PATH), "/health")
    for key, field in (("idle_timeout", "idle_s"), ("start_timeout", "start_s")):
        if key in found:
            said[field] = reader.read(found[key], key, "a duration such as 15m", parse_duration_s, 900)
    if "prewarm" in found:
        said["prewarm"] = _prewarm(found["prewarm"], reader)
    if "scaling" in found:
        said |= _scaling(found["scaling"], reader)
    if "pricing" in found:
        said |= _pricing(found["pricing"], reader)
    return Serving(**said)


def _prewarm(node: yaml.Node, reader: Reader) -> tuple[Prewarm, ...]:
    """``mon-fri 08:00-18:00: 2`` each, in UTC."""
    expected = "`DAYS HH:MM-HH:MM = REPLICAS` in UTC, such as mon-fri 08:00-18:00 = 2"
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    found: list[Prewarm] = []
    for item in items:
        made = _window(str(item.value)) if isinstance(item, yaml.ScalarNode) else None
        if made is None or len(items) > PREWARM_MAX:
            reader.wrong(item, "prewarm", expected)
        else:
            found.append(made)
    return tuple(found)


def _window(text: str) -> Prewarm | None:
    match = _WINDOW.fullmatch(text.strip().lower())
    if match is None:
        return None
    first, last, *clock, replicas = match.groups()
    start, end = (int(hour) * 60 + int(minute) for hour, minute in (clock[:2], clock[2:]))
    days = range(7) if first == "daily" else _days(_DAYS.index(first), _DAYS.index(last or first))
    good = start < 1440 and end <= 1440 and start != end and int(clock[1]) < 60 and int(clock[3]) < 60 and 1 <= int(replicas) <= REPLICAS_MAX
    return Prewarm(days=tuple(days), start_min=start, end_min=end, replicas=int(replicas)) if good else None


def _days(first: int, last: int) -> list[int]:
    return [(first + n) % 7 for n in range((last - first) % 7 + 1)]


def _scaling(node: yaml.Node, reader: Reader) -> dict[str, Any]:
    found = reader.fields(node, "scaling", ("metric", "target"), {})
    said: dict[str, Any] = {}
    if "metric" in found:
        written = reader.text(found["metric"], "scaling.metric")
        if written in set(Metric):
            said["metric"] = Metric(written)
        else:
            close = difflib.get_close_matches(written, list(Metric), n=1, cutoff=0.3)
            reader.wrong(found["metric"], "scaling.metric", f"one of {', '.join(Metric)}", close[0] if close else "")
    if "target" in found:
        said["target"] = reader.read(found["target"], "scaling.target", "what one replica carries, above 0", _positive, 8.0)
    return said


def _pricing(node: yaml.Node, reader: Reader) -> dict[str, Any]:
    """`per-second`, or what a million tokens cost: `{input: 0.20, output: 0.60}`."""
    if isinstance(node, yaml.ScalarNode):
        written = reader.text(node, "pricing").replace("_", "-")
        if written != Pricing.PER_SECOND:
            expected = "per-second, or US$ per million tokens: {input: 0.20, output: 0.60}"
            reader.wrong(node, "pricing", expected, "{input: 0.20, output: 0.60}" if written == Pricing.PER_TOKEN else "per-second")
        return {}
    found = reader.fields(node, "pricing", ("per", "input", "output"), {"prompt": "input", "completion": "output"})
    said: dict[str, Any] = {"pricing": Pricing.PER_TOKEN}
    for key in ("input", "output"):
        if key in found:
            said[f"{key}_nano"] = reader.read(found[key], f"pricing.{key}", "US$ per million tokens, such as 0.20", parse_usd, 0)
        else:
            reader.wrong(node, f"pricing.{key}", "US$ per million tokens, such as 0.20")
    if "per" in found and reader.text(found["per"], "pricing.per") not in {"token", "tokens"}:
        reader.wrong(found["per"], "pricing.per", "token")
    return said


def _replicas(text: str) -> tuple[int, int]:
    low, dots, high = text.replace("-", "..").partition("..")
    least = _whole(low, 0, REPLICAS_MAX)
    most = _whole(high, 1, REPLICAS_MAX) if dots else least
    if not least <= most or most == 0:
        raise ValueError(text)
    return least, most


def _whole(text: str, least: int, most: int) -> int:
    if not re.fullmatch(r"\d{1,6}", text) or not least <= int(text) <= most:
        raise ValueError(text)
    return int(text)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1e9:
        raise ValueError(text)
    return value


def _matching(pattern: re.Pattern[str]) -> Any:
    def read(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(text)
        return text

    return read
