"""The workload file, YAML or JSON text to a `Spec`: every mistake in one answer, each with its line and the nearest spelling.

Synonyms of dstack and SkyPilot are accepted and warned about. PyYAML composes the tree (so that every node knows its line,
and no tag can construct anything); the rules are the tables below.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import yaml

from headframe.model.errors import BadFile, Mistake
from headframe.model.fleet import Grade, Sharing
from headframe.model.serving import Pricing
from headframe.model.states import Reason
from headframe.model.units import MILLI, parse_duration_s, parse_mib, parse_usd
from headframe.model.work import ENDPOINT, SOLD, WORKSPACE, GpuRequest, Mount, Network, Resources, Retry, Spec, Tier
from headframe.server.serving_file import KEYS as SERVED_KEYS
from headframe.server.serving_file import serving

FILE_BYTES_MAX = 256 * 1024
DEPTH_MAX = 20
NODES_MAX, GPUS_MAX, ENV_MAX = 1024, 64, 500
TYPES = {"job": "job", "task": "job", "endpoint": "endpoint", "service": "endpoint", "workspace": "workspace", "dev-environment": "workspace"}
SYNONYMS = {
    "commands": "run", "command": "run", "envs": "env", "num_nodes": "nodes", "working_dir": "workdir", "docker": "image",
    "spot_policy": "tier", "max_cost": "max_price", "file_mounts": "volumes", "envars": "env",
}  # fmt: skip
RESOURCE_SYNONYMS = {"accelerators": "gpu", "gpus": "gpu", "cpus": "cpu", "mem": "memory", "ram": "memory", "disk_size": "disk"}
RETRY_ON = {"preempted": Reason.PREEMPTED, "node-lost": Reason.NODE_LOST, "node-fault": Reason.NODE_FAULT, "failed": Reason.FAILED,
            "setup-failed": Reason.SETUP_FAILED, "start-failed": Reason.START_FAILED, "error": Reason.FAILED, "interruption": Reason.PREEMPTED,
            "no-capacity": Reason.NODE_LOST}  # fmt: skip
ARCHES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
VOLUMES_MAX = 16
IDLE_S = 3600
"""A workspace that nobody has used for so long is stopped, unless its file says otherwise."""
_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
_ENV_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")
_MEMORY_RANGE = re.compile(r"^(\d+(?:\.\d+)?[KMGT]i?B?)?\.\.(\d+(?:\.\d+)?[KMGT]i?B?)?$|^(\d+(?:\.\d+)?[KMGT]i?B?)$", re.IGNORECASE)


class Parsed(msgspec.Struct, frozen=True, kw_only=True):
    """A good file and what to mention about it."""

    spec: Spec
    warnings: tuple[str, ...] = ()


def parse(text: str) -> Parsed:
    """The specification that `text` is; BadFile with every mistake."""
    if len(text.encode("utf-8", "surrogatepass")) > FILE_BYTES_MAX:
        raise BadFile([Mistake(line=1, key="file", expected=f"at most {FILE_BYTES_MAX // 1024} KiB")])
    reader = _Reader()
    root = _compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise BadFile([Mistake(line=1, key="file", expected="a mapping of keys, such as `type: job`")])
    kind = _kind(root, reader)
    spec = _spec(root, reader, kind)
    if reader.mistakes or spec is None:
        raise BadFile(sorted(reader.mistakes, key=lambda mistake: mistake.line))
    return Parsed(spec=spec, warnings=tuple(reader.warnings))


class _Reader:
    """Collects mistakes and warnings while values are read."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []
        self.warnings: list[str] = []

    def wrong(self, node: yaml.Node, key: str, expected: str, nearest: str = "") -> None:
        self.mistakes.append(Mistake(line=node.start_mark.line + 1, key=key, expected=expected, nearest=nearest))

    def fields(self, node: yaml.Node, where: str, known: Sequence[str], synonyms: dict[str, str]) -> dict[str, yaml.Node]:
        """The values of a mapping by canonical key; unknown and repeated keys are mistakes."""
        found: dict[str, yaml.Node] = {}
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, where, "a mapping")
            return found
        for key_node, value in node.value:
            written = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
            key = synonyms.get(written, written)
            shown = f"{where}.{written}" if where else written
            if key not in known:
                close = difflib.get_close_matches(key, [*known, *synonyms], n=1, cutoff=0.5)
                nearest = synonyms.get(close[0], close[0]) if close else ""
                self.wrong(key_node, shown, "no such key" if nearest else f"no such key; there are {', '.join(known)}", nearest)
            elif key in found:
                self.wrong(key_node, shown, "given once only")
            else:
                if key != written:
                    self.warnings.append(f"line {key_node.start_mark.line + 1}: `{written}` is read as `{key}`")
                found[key] = value
        return found

    def text(self, node: yaml.Node, key: str) -> str:
        """A scalar as text; a list of commands becomes a script that stops at the first failure."""
        if isinstance(node, yaml.ScalarNode):
            value = "" if node.tag.endswith(":null") else str(node.value)
            if "\0" not in value:
                return value
            self.wrong(node, key, "text without NUL characters")
            return ""
        if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
            return "\n".join(["set -e", *(str(item.value) for item in node.value)])
        self.wrong(node, key, "text")
        return ""

    def read(self, node: yaml.Node, key: str, expected: str, parse_text: Callable[[str], Any], default: Any) -> Any:
        """A scalar through a parser; ValueError becomes a mistake."""
        if isinstance(node, yaml.ScalarNode):
            try:
                return parse_text(str(node.value).strip())
            except (ValueError, KeyError, OverflowError):
                pass
        self.wrong(node, key, f"{expected}, not {_shown(node)}")
        return default


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml, where it was built in: a tenth of the time."""


def _compose(text: str) -> yaml.Node:
    try:
        for token_depth in _depths(text):
            if token_depth > DEPTH_MAX:
                raise BadFile([Mistake(line=1, key="file", expected=f"at most {DEPTH_MAX} levels of nesting")])
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadFile([Mistake(line=line, key="file", expected=f"valid YAML: {error.problem}")]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadFile([Mistake(line=1, key="file", expected=f"valid YAML: {str(error).splitlines()[0]}")]) from error
    return root if root is not None else yaml.ScalarNode("tag:yaml.org,2002:null", "", yaml.Mark("", 0, 0, 0, None, 0), None)


def _depths(text: str) -> Any:
    """Nesting depth event by event, so that a deep file is refused before it is built; aliases and tags are refused with it."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise BadFile([Mistake(line=event.start_mark.line + 1, key="file", expected="no YAML aliases or tags")])
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        yield depth


def _kind(root: yaml.MappingNode, reader: _Reader) -> str:
    for key, value in root.value:
        if getattr(key, "value", "") == "type":
            written = reader.text(value, "type")
            if written in TYPES:
                if TYPES[written] != written:
                    reader.warnings.append(f"line {value.start_mark.line + 1}: `type: {written}` is read as `type: {TYPES[written]}`")
                return TYPES[written]
            close = difflib.get_close_matches(written, TYPES, n=1)
            reader.wrong(value, "type", f"one of {', '.join(dict.fromkeys(TYPES.values()))}", close[0] if close else "job")
    return "job"


_KEYS = ("type", "name", "workdir", "image", "setup", "run", "env", "nodes", "resources", "tier", "priority", "max_price",
         "max_duration", "retry", "checkpoint", "volumes", "topology", "delete_after", *SERVED_KEYS)  # fmt: skip


def _spec(root: yaml.MappingNode, reader: _Reader, kind: str) -> Spec | None:
    found = reader.fields(root, "", _KEYS, SYNONYMS)
    texts = {key: reader.text(found[key], key) for key in ("workdir", "image", "setup", "run", "checkpoint") if key in found}
    if not texts.get("run", "").strip() and kind in {"job", ENDPOINT}:
        example = "vllm serve Qwen/Qwen3-8B --host $HEADFRAME_HOST --port $HEADFRAME_PORT" if kind == ENDPOINT else "python train.py"
        reader.wrong(found.get("run", root), "run", f"the command to run, such as `run: {example}`")
    _texts_good(texts, found, reader)
    options = {_FIELD.get(key, key): _OPTIONS[key](found[key], reader) for key in _OPTIONS if key in found}
    if "topology" in found:
        _topology(found["topology"], reader, options)
    values: dict[str, Any] = {"run": "", **texts, **options}
    if "nodes" in found:
        least, most = options["nodes"]
        values |= {"nodes": most, "nodes_min": least if least < most else 0}
    _volumes_good(values, found, reader)
    if values.get("nodes", 1) > 1:
        values["resources"] = msgspec.structs.replace(values.get("resources", Resources()), gang=True)
    if kind == ENDPOINT:
        _endpoint(values, found, root, reader)
    elif kind == WORKSPACE:
        _workspace(values, found, root, reader)
    if kind != WORKSPACE and "delete_after" in found:
        reader.wrong(found["delete_after"], "delete_after", "a key of workspaces: `type: workspace`")
    if kind != ENDPOINT:
        for key in (key for key in SERVED_KEYS if key in found and not (kind == WORKSPACE and key == "idle_timeout")):
            reader.wrong(found[key], key, "a key of endpoints: `type: endpoint`")
    return None if reader.mistakes else Spec(**values)


def _workspace(values: dict[str, Any], found: dict[str, yaml.Node], root: yaml.Node, reader: _Reader) -> None:
    """A machine to work on: it waits for its user, and is given up when nobody uses it."""
    if "name" not in found:
        reader.wrong(root, "name", "a name: `headframe ssh NAME`")
    if values.get("nodes", 1) != 1:
        reader.wrong(found["nodes"], "nodes", "1: a workspace is on one machine")
    idle_s = reader.read(found["idle_timeout"], "idle_timeout", "a duration such as 30m", parse_duration_s, 0) if "idle_timeout" in found else IDLE_S
    if "delete_after" in found:
        values["delete_s"] = reader.read(found["delete_after"], "delete_after", "a duration such as 30d", _max_duration, 0)
    values |= {
        "type": WORKSPACE,
        "run": values["run"].strip() or "exec sleep infinity",
        "idle_s": idle_s,
        "retry": values.get("retry", Retry(on=(Reason.NODE_LOST, Reason.NODE_FAULT))),
    }


def _endpoint(values: dict[str, Any], found: dict[str, yaml.Node], root: yaml.Node, reader: _Reader) -> None:
    """What a job has not, and what it has and an endpoint can't."""
    if "name" not in found:
        reader.wrong(root, "name", "a name: clients ask for it")
    for key in (key for key in ("retry", "max_duration", "checkpoint", "nodes") if key in found and values.get(key) != 1):
        reader.wrong(found[key], key, "not for endpoints: a replica that ends is replaced by another, on one node")
    serve = serving(found, reader)
    values["resources"] = msgspec.structs.replace(values.get("resources", Resources()), reached=True)
    values |= {"type": ENDPOINT, "serve": serve, **({"tier": Tier.SERVED} if serve.pricing is Pricing.PER_TOKEN else {})}


def _volumes_good(values: dict[str, Any], found: dict[str, yaml.Node], reader: _Reader) -> None:
    if any(not mount.cache for mount in values.get("volumes", ())) and values.get("nodes", 1) > 1:
        reader.wrong(found["volumes"], "volumes", "one node: a volume lies on one machine (a cache, as cache:NAME:/PATH, is one on each)")
    kinds = {(mount.volume, mount.cache) for mount in values.get("volumes", ())}
    if len({name for name, _ in kinds}) < len(kinds):
        reader.wrong(found["volumes"], "volumes", "names of which each is a volume or a cache, not both")
    paths = [mount.path for mount in values.get("volumes", ())] + [path for path in (values.get("checkpoint"),) if path]
    if len(set(paths)) < len(paths):
        reader.wrong(found["volumes"], "volumes", "a path of its own for each")


def _texts_good(texts: dict[str, str], found: dict[str, yaml.Node], reader: _Reader) -> None:
    image, checkpoint, workdir = texts.get("image", ""), texts.get("checkpoint", ""), texts.get("workdir", "")
    if image and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}", image):
        reader.wrong(found["image"], "image", "an image reference such as ghcr.io/org/image:tag")
    if checkpoint and (not checkpoint.startswith("/") or ".." in checkpoint.split("/") or ":" in checkpoint):
        reader.wrong(found["checkpoint"], "checkpoint", "an absolute path such as /checkpoints")
    if workdir and (workdir.startswith("/") or ".." in workdir.split("/")):
        reader.wrong(found["workdir"], "workdir", "a relative path without `..`")


def _name(node: yaml.Node, reader: _Reader) -> str:
    written = reader.text(node, "name")
    if _NAME.fullmatch(written):
        return written
    nearest = re.sub(r"[^a-z0-9]+", "-", written.lower()).strip("-")[:63].strip("-")
    reader.wrong(node, "name", "lower-case letters, digits and dashes, at most 63", nearest)
    return ""


def _env(node: yaml.Node, reader: _Reader) -> dict[str, str]:
    env: dict[str, str] = {}
    if not isinstance(node, yaml.MappingNode) or len(node.value) > ENV_MAX:
        reader.wrong(node, "env", f"a mapping of at most {ENV_MAX} names to values")
        return env
    for key, value in node.value:
        name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
        if not _ENV_NAME.fullmatch(name) or name.startswith("HEADFRAME_"):
            reader.wrong(key, f"env.{name}"[:80], "a name of letters, digits and underscores, not starting with HEADFRAME_")
        elif isinstance(value, yaml.ScalarNode):
            env[name] = reader.text(value, f"env.{name}")
        else:
            reader.wrong(value, f"env.{name}", "text or a number")
    return env


def _integer(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"-?\d{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(text)
        return int(text)

    return read


def _nodes(text: str) -> tuple[int, int]:
    """``4``, or ``2..8``: the fewest and the most."""
    low, dots, high = text.partition("..")
    least, most = _integer(1, NODES_MAX)(low), _integer(1, NODES_MAX)(high if dots else low)
    if least > most:
        raise ValueError(text)
    return least, most


def _tier(node: yaml.Node, reader: _Reader) -> Tier:
    written = reader.text(node, "tier").replace("_", "-")
    if written in SOLD:
        return Tier(written)
    close = difflib.get_close_matches(written, SOLD, n=1, cutoff=0.3)
    reader.wrong(node, "tier", "on-demand, spot or reserved", close[0] if close else "")
    return Tier.ON_DEMAND


def _resources(node: yaml.Node, reader: _Reader) -> Resources:
    found = reader.fields(node, "resources", ("gpu", "cpu", "memory", "disk", "exclusive", "arch", "tolerations"), RESOURCE_SYNONYMS)
    read: dict[str, Any] = {}
    if "gpu" in found:
        read["gpu"] = _gpu(found["gpu"], reader)
    if "exclusive" in found:
        read["exclusive"] = reader.read(found["exclusive"], "resources.exclusive", "node", _exclusive, default=False)
    if "arch" in found:
        read["arch"] = reader.read(found["arch"], "resources.arch", " or ".join(dict.fromkeys(ARCHES.values())), ARCHES.__getitem__, "")
    if "tolerations" in found:
        read["tolerations"] = tuple(sorted(set(_list(found["tolerations"], "resources.tolerations", reader))))
    if "cpu" in found:
        read["cpu_milli"] = reader.read(found["cpu"], "resources.cpu", "cores, such as 8 or 0.5", _cores, MILLI)
    for key in ("memory", "disk"):
        if key in found:
            read[f"{key}_mib"] = reader.read(found[key], f"resources.{key}", "a size such as 32GB", _size, 1024)
    return Resources(**read)


def _gpu(node: yaml.Node, reader: _Reader) -> GpuRequest:
    """``MODEL:N`` and the like, or a mapping with every demand by its name."""
    if not isinstance(node, yaml.MappingNode):
        return reader.read(node, "resources.gpu", "MODEL:N, 24GB..:2, 0.25 or 0", parse_gpu, GpuRequest())
    found = reader.fields(node, "resources.gpu", (*_GPU_TEXTS, "count"), {"name": "model", "vram": "memory"})
    read = {
        key: reader.read(found[key], f"resources.gpu.{key}", expected, parsed, "") for key, (expected, parsed) in _GPU_TEXTS.items() if key in found
    }
    kind = read.pop("memory", "") or read.get("model", "")
    count = reader.read(found["count"], "resources.gpu.count", "a number of GPUs, such as 2 or 0.5", str, "1") if "count" in found else "1"
    try:
        request = parse_gpu(f"{kind}:{count}" if kind else count)
    except ValueError:
        reader.wrong(node, "resources.gpu", "a count, a model or a memory range that can be had")
        return GpuRequest()
    return msgspec.structs.replace(request, **read)


def _list(node: yaml.Node, key: str, reader: _Reader) -> list[str]:
    """A list of short names, or one."""
    items = node.value if isinstance(node, yaml.SequenceNode) else [node]
    names = [str(item.value) if isinstance(item, yaml.ScalarNode) else "" for item in items]
    if len(names) > 20 or not all(_NAME.fullmatch(name) for name in names):
        reader.wrong(node, key, "a list of at most 20 names of lower-case letters, digits and dashes")
        return []
    return names


def _exclusive(text: str) -> bool:
    if text != "node":
        raise ValueError(text)
    return True


def _matching(pattern: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return read


_GPU_TEXTS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "model": ("a model such as RTX3090", _matching(r"[A-Za-z][A-Za-z0-9 ._-]{0,63}")),
    "memory": ("a size or a range such as 24GB.. ", _matching("(?i)" + _MEMORY_RANGE.pattern)),
    "compute_capability": ("a version such as 8.0", lambda text: _matching(r"\d{1,2}\.\d")(text.removeprefix(">=").strip())),
    "grade": (f"one of {', '.join(list(Grade)[:5])}", Grade),
    "sharing": ("time-slice or mps", lambda text: {"time-slice": Sharing.TIME_SLICE, "mps": Sharing.MPS}[text]),
    "mig": ("a profile such as 1g.10gb", _matching(r"\dg\.\d{1,3}gb(\+me)?")),
}


def _volumes(node: yaml.Node, reader: _Reader) -> tuple[Mount, ...]:
    """``name:/path`` or ``cache:name:/path`` each, or a mapping of names to paths."""
    if isinstance(node, yaml.MappingNode):
        pairs = [(str(key.value), str(value.value)) for key, value in node.value]
    else:
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        written = [str(item.value) if isinstance(item, yaml.ScalarNode) else "" for item in items]
        pairs = [(name, path) for name, _, path in (text.rpartition(":") for text in written)]
    mounts = [Mount(volume=name.removeprefix("cache:"), path=path, cache=name.startswith("cache:")) for name, path in pairs]
    good = [
        _NAME.fullmatch(each.volume) and each.path.startswith("/") and each.path != "/" and ".." not in each.path.split("/") and ":" not in each.path
        for each in mounts
    ]
    if not all(good) or len(mounts) > VOLUMES_MAX:
        reader.wrong(node, "volumes", f"at most {VOLUMES_MAX} of NAME:/PATH, such as data:/data, or cache:NAME:/PATH")
        return ()
    return tuple(mounts)


def parse_gpu(text: str) -> GpuRequest:
    """``RTX3090:4``, ``24GB..:2``, ``24GB..48GB``, ``0.25``, ``0``, ``H100``; ValueError where it is none of these."""
    kind, _, count = text.rpartition(":") if ":" in text else ("", "", text)
    if not kind and not re.fullmatch(r"\d+(\.\d+)?", count):
        kind, count = text, "1"
    milli, kind = _gpu_milli(count), kind.strip()
    if not text:
        raise ValueError(text)
    memory = _MEMORY_RANGE.fullmatch(kind)
    if memory:
        low, high, exact = memory.groups()
        at_least = parse_mib(low or exact) if low or exact else 0
        return GpuRequest(milli=milli, memory_min_mib=at_least, memory_max_mib=parse_mib(high) if high else 0)
    if kind and not re.fullmatch(r"[A-Za-z][A-Za-z0-9 ._-]{0,63}", kind):
        raise ValueError(text)
    return GpuRequest(milli=milli, model=kind)


def _gpu_milli(count: str) -> int:
    if not re.fullmatch(r"\d{1,3}(\.\d{1,3})?", count.strip()):
        raise ValueError(count)
    milli = round(float(count) * MILLI)
    if milli > GPUS_MAX * MILLI or (milli > MILLI and milli % MILLI):
        raise ValueError(count)
    return milli


def _cores(text: str) -> int:
    text = text.removesuffix("+")
    if not re.fullmatch(r"\d{1,4}(\.\d{1,3})?", text) or float(text) <= 0:
        raise ValueError(text)
    return round(float(text) * MILLI)


def _size(text: str) -> int:
    size = parse_mib(text.removesuffix("+"))
    if not 1 <= size <= 1 << 40:
        raise ValueError(text)
    return size


def _retry(node: yaml.Node, reader: _Reader) -> Retry:
    found = reader.fields(node, "retry", ("on", "attempts"), {"on_events": "on", "max_attempts": "attempts"})
    reasons: list[Reason] = []
    listed = found.get("on")
    items = listed.value if isinstance(listed, yaml.SequenceNode) else [listed] if listed is not None else []
    for item in items:
        written = str(item.value) if isinstance(item, yaml.ScalarNode) else ""
        if written in RETRY_ON:
            reasons.append(RETRY_ON[written])
        else:
            close = difflib.get_close_matches(written, RETRY_ON, n=1)
            reader.wrong(item, "retry.on", f"of {', '.join(list(RETRY_ON)[:6])}", close[0] if close else "")
    attempts = 5
    if "attempts" in found:
        attempts = reader.read(found["attempts"], "retry.attempts", "1 to 100", _integer(1, 100), 5)
    return Retry(on=tuple(dict.fromkeys(reasons)) if listed is not None else Retry().on, attempts=attempts)


def _topology(node: yaml.Node, reader: _Reader, options: dict[str, Any]) -> None:
    """How near nodes and cards are to be: the network is the workload's, the rest its GPUs'."""
    found = reader.fields(node, "topology", ("network", "pcie", "p2p"), {})
    resources: Resources = options.get("resources", Resources())
    gpu = resources.gpu
    if "pcie" in found:
        width = reader.read(found["pcie"], "topology.pcie", 'lanes, such as ">=8"', _lanes, 0)
        gpu = msgspec.structs.replace(gpu, pcie_width=width)
    if "p2p" in found:
        required = reader.read(found["p2p"], "topology.p2p", "required or unconstrained", {"required": True, "unconstrained": False}.__getitem__, "")
        gpu = msgspec.structs.replace(gpu, p2p=bool(required))
    options["resources"] = msgspec.structs.replace(resources, gpu=gpu)
    if "network" in found:
        written = reader.text(found["network"], "topology.network")
        if written in set(Network):
            options["network"] = Network(written)
            return
        close = difflib.get_close_matches(written, list(Network), n=1, cutoff=0.3)
        reader.wrong(found["network"], "topology.network", "unconstrained, preferred or required", close[0] if close else "")


def _lanes(text: str) -> int:
    text = text.removeprefix(">=").strip().removeprefix("x")
    if text not in {"1", "2", "4", "8", "16"}:
        raise ValueError(text)
    return int(text)


def _max_duration(text: str) -> int:
    seconds = parse_duration_s(text)
    if seconds > 366 * 86_400:
        raise ValueError(text)
    return seconds


_OPTIONS: dict[str, Callable[[yaml.Node, _Reader], Any]] = {
    "name": _name,
    "env": _env,
    "tier": _tier,
    "resources": _resources,
    "retry": _retry,
    "volumes": _volumes,
    "nodes": lambda node, reader: reader.read(node, "nodes", f"1 to {NODES_MAX}, or a range such as 2..8", _nodes, (1, 1)),
    "priority": lambda node, reader: reader.read(node, "priority", "-1000 to 1000", _integer(-1000, 1000), 0),
    "max_price": lambda node, reader: reader.read(node, "max_price", "US$ per hour, such as 1.50", parse_usd, 0),
    "max_duration": lambda node, reader: reader.read(node, "max_duration", "a duration such as 12h", _max_duration, 0),
}
_FIELD = {"max_price": "max_price_nano", "max_duration": "max_duration_s"}


def _shown(node: yaml.Node) -> str:
    return repr(str(node.value)[:40]) if isinstance(node, yaml.ScalarNode) else "a list or mapping"
