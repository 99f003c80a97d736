"""`make docs`: the reference, generated from the code that it describes; a test holds the two equal."""

import asyncio
import inspect
import sys
from pathlib import Path

import typer.main

HERE = Path(__file__).resolve().parent / "reference"


def pages() -> dict[Path, str]:
    return {
        HERE / "states.md": states(),
        HERE / "cli.md": cli(),
        HERE / "api.md": api(),
        HERE / "errors.md": errors(),
        HERE / "rules.md": rules(),
        HERE / "workload-file.md": workload_file(),
    }


def states() -> str:
    from headframe.model import states as table

    out = ["# States\n\nGenerated from the tables in `headframe.model.states`. A move that is not drawn here is refused by the code.\n"]
    for name in ("NODE_MOVES", "GPU_MOVES", "WORKLOAD_MOVES", "ALLOCATION_MOVES"):
        out.append(f"\n## {name.split('_')[0].capitalize()}\n\n```mermaid\nstateDiagram-v2")
        for state, moves in getattr(table, name).items():
            out += [f"    {state} --> {move}" for move in sorted(moves)] or [f"    {state} --> [*]"]
        out.append("```")
    out.append("\n## Why an allocation ends\n")
    out += [f"- `{reason}`{' (credited back)' if reason in table.NODE_FAULTS else ''}" for reason in table.Reason]
    return "\n".join(out) + "\n"


def cli() -> str:
    from headframe.cli.main import app

    out = [
        "# Command line\n\nGenerated from the commands themselves. Exit codes: 0 done, 1 the workload failed, 2 wrong usage, 3 refused,\n"
        "4 no server, 5 not signed in, 130 interrupted. Tab completion: `headframe --install-completion`.\n"
    ]
    command = typer.main.get_command(app)
    for name, sub in sorted(command.commands.items()):
        for label, leaf in sorted(getattr(sub, "commands", {"": sub}).items()):
            title = f"{name} {label}".strip()
            out.append(f"\n## headframe {title}\n\n{(leaf.help or '').strip()}\n")
            for parameter in leaf.params:
                names = ", ".join(f"`{option}`" for option in getattr(parameter, "opts", [])) or parameter.name
                text = getattr(parameter, "help", None) or ""
                out.append(f"- {names}: {text}".rstrip(": "))
    return "\n".join(out) + "\n"


def routes():
    """(method, path, handler) of every route of the real application, without a server."""
    from headframe.engines.simulated import Machines, SimulatedEngine
    from headframe.server.app import app
    from headframe.server.auth import Auth
    from headframe.server.context import Context
    from headframe.server.desk import Desk
    from headframe.server.lead import Leadership
    from headframe.store.memory import MemoryStore

    desk = Desk(MemoryStore(), lambda: 0, asyncio.to_thread)
    context = Context(
        desk=desk,
        auth=Auth(b"x" * 32),
        engine=SimulatedEngine(Machines(lambda: 0, lambda *_: (0, 0))),
        leadership=Leadership(desk.store, "", lambda: 0, asyncio.to_thread, alone=True),
        workdirs=HERE,
        clock_ms=lambda: 0,
        secure=False,
    )
    for route in app(context).routes:
        if hasattr(route, "route_handler"):
            yield "WS", str(route.path), route.route_handler
            continue
        for handler in route.route_handlers:
            for method in sorted(handler.http_methods - {"OPTIONS", "HEAD"}):
                yield method, str(route.path), handler


def api() -> str:
    rows = [
        (path, method, str(handler.opt["scope"]), " ".join((inspect.getdoc(handler.fn) or "").split()))
        for method, path, handler in routes()
        if path.startswith("/v1/")
    ]
    out = [
        "# HTTP API\n\nGenerated from the routes. The OpenAPI document is served at `/schema/openapi.json`.\n\nEvery write takes an `Idempotency-Key`: "
        "for seven days the same key and body get the stored answer, another body is 422, one in flight 409.\nRefusals are RFC 9457 problems with a stable `code` and a `next_step`.\n",
        "| Method | Path | Scope | What |",
        "| --- | --- | --- | --- |",
    ]
    out += [f"| {method} | `{path}` | {scope} | {what} |" for path, method, scope, what in sorted(rows)]
    return "\n".join(out) + "\n"


def errors() -> str:
    from headframe.model import errors as module

    out = [
        "# Refusals\n\nGenerated from `headframe.model.errors`. The code is stable; the next step is told with every refusal.\n",
        "| Code | Status | When | Next step |",
        "| --- | --- | --- | --- |",
    ]
    kinds = [
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, module.HeadframeError) and kind is not module.HeadframeError
    ]
    for kind in sorted(kinds, key=lambda kind: kind.code):
        out.append(f"| `{kind.code}` | {kind.status} | {' '.join((kind.__doc__ or '').split())} | {kind.next_step} |")
    return "\n".join(out) + "\n"


def rules() -> str:
    from headframe.health.rules import NODE_RULES, RULES, WATCH_RULES

    out = [
        "# Rules of health\n\nGenerated from `src/headframe/health/rules.py`. A reading that is not known trips no rule; a needed check without a result "
        "leaves a card `unmeasured`.\n",
    ]
    for title, last, table in (
        ("Grades of cards: the lowest of all that apply", "at best", RULES),
        ("Grades of machines, for work on several of their cards", "at best", NODE_RULES),
        ("Cards in service", "is", WATCH_RULES),
    ):
        out.append(f"\n## {title}\n\n| rule | reading | limit | {last} | why | source |\n|---|---|---|---|---|---|")
        for rule in table:
            held = f" for {rule.hold_ms // 60_000} min" if rule.hold_ms else ""
            out.append(f"| `{rule.name}` | `{rule.datum}` | {rule.when} {rule.limit:g}{held} | {rule.leaves} | {rule.why} | {rule.source} |")
    return "\n".join(out) + "\n"


def workload_file() -> str:
    from headframe.server import workload_file as module

    out = [
        "# The workload file\n\nYAML or JSON. Generated from the parser's tables.\n\n```yaml",
        (HERE.parent.parent / "examples" / "digits" / "job.yaml").read_text().rstrip(),
        "```\n",
        "Keys: " + ", ".join(f"`{key}`" for key in module._KEYS) + ".\n",
        "`gpu` is `MODEL:N`, a memory range and count (`24GB..:2`), a fraction of one card (`0.25`) or `0`. Sizes are powers of 1024; plain numbers are GB.\n",
        "## Synonyms\n\nAccepted, with a warning:\n",
    ]
    out += [f"- `{old}` is read as `{new}`" for old, new in {**module.SYNONYMS, **module.RESOURCE_SYNONYMS}.items()]
    out += [f"- `type: {old}` is read as `type: {new}`" for old, new in module.TYPES.items() if old != new]
    out.append(
        "\nAn endpoint's keys are told in [Serve a model](../howto/serve.md). A workspace has `idle_timeout` besides: see [Work on a machine](../howto/workspaces.md).\n\n"
        "## GPUs, machines and volumes\n\n```yaml\nresources:\n"
        "  gpu: {model: A100, count: 2, memory: 40GB.., compute_capability: '8.0', grade: train, sharing: mps, mig: 1g.10gb}   # all but one may be left out\n"
        "  exclusive: node           # the whole machine; it has just the cards asked for\n"
        "  arch: x86_64              # or aarch64\n  tolerations: [lab]        # taints of machines that it does not mind\n"
        "topology: {network: preferred, pcie: '>=8', p2p: required}\nvolumes: [data:/data]\n```\n\n"
        "- `network: required` keeps a gang in one rack, `preferred` (the default) in one unless it costs more, `unconstrained` anywhere.\n"
        "- `p2p: required`: cards of one machine that reach each other's memory. `pcie`: the width of each card's link, in lanes.\n"
        "- `sharing` is how a fraction is kept apart. `time-slice` isolates nothing; `mps` limits the share of the processors. Neither is a boundary\n"
        "  between tenants who don't trust each other. A MIG instance is a card of its own.\n"
        "- A volume is a directory of the project's that outlives its work. It lies on the machine where it was first mounted, and work that mounts it\n"
        "  goes there. In a container it is at its path; without an image its path is in `$HEADFRAME_VOLUME_<NAME>`. It is not limited in size.\n"
        "- `cache:models:/models` is a cache: a directory of its own on each machine, for what can be had again (model files, data sets). Gangs may have one; work prefers\n"
        "  machines that have it; what nothing has mounted for 30 days is deleted. On Slurm it lies on the node's own disk, in `/var/tmp`, and the system clears it."
    )
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text)
        sys.stdout.write(f"{path.relative_to(HERE.parent.parent)}\n")
