"""NVIDIA's own diagnostic beside ours, where an operator has installed it: what `dcgmi diag` passes and fails is evidence, it decides no grade.

On cards that are no data-centre cards it runs software checks only (DCGM's documentation), which is why the checks themselves are ours.
"""

import asyncio
import contextlib
import json
import shutil
from typing import Any

from headframe.model.health import Depth, Evidence

LEVEL = {Depth.QUICK: 1, Depth.IDLE: 2, Depth.FULL: 3}
"""By DCGM's documentation: seconds, about 2 minutes, about 15 minutes."""
LIMIT_S = {Depth.QUICK: 60.0, Depth.IDLE: 600.0, Depth.FULL: 3600.0}
SAID_MAX = 300


async def diagnosed(depth: Depth) -> tuple[Evidence, ...]:
    """What DCGM finds of this machine's cards; nothing where it is not installed."""
    program = shutil.which("dcgmi")
    if program is None:
        return ()
    argv = [program, "diag", "-r", str(LEVEL[depth]), "-j"]
    child = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        said, _ = await asyncio.wait_for(child.communicate(), LIMIT_S[depth])
    except TimeoutError:
        return (Evidence(test=" ".join(argv[1:]), status="not ended", said=f"it did not end in {LIMIT_S[depth]:g} s"),)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
    return read(said.decode("utf-8", "replace")) or (
        Evidence(test=" ".join(argv[1:]), status="not understood", said=f"it ended with {child.returncode}"),
    )


def read(text: str) -> tuple[Evidence, ...]:
    """The results in `dcgmi diag -j`'s output, of DCGM 3 (`gpu_ids`) and 4 (`entity_id`); what is not understood is left out."""
    try:
        told = json.loads(text[text.index("{") :])
    except ValueError:
        return ()
    found: list[Evidence] = []
    for test in _tests(told):
        for result in _list(test, "results"):
            found += [_evidence(test, result, index) for index in _cards(result)]
    return tuple(found)


def _tests(told: Any) -> list[dict[str, Any]]:
    whole = next((value for key, value in told.items() if "Diagnostic" in key), {}) if isinstance(told, dict) else {}
    return [test for category in _list(whole, "test_categories") for test in _list(category, "tests")]


def _list(told: Any, name: str) -> list[dict[str, Any]]:
    items = told.get(name) if isinstance(told, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _cards(result: dict[str, Any]) -> list[int | None]:
    """Of which cards a result speaks; None is the machine as a whole."""
    ids = str(result.get("gpu_ids") or result.get("gpu_id") or "")
    if result.get("entity_group") == "GPU":
        ids = str(result.get("entity_id", ""))
    return [int(each) for each in ids.split(",") if each.strip().isdigit()] or [None]


def _evidence(test: dict[str, Any], result: dict[str, Any], index: int | None) -> Evidence:
    warnings = result.get("warnings") or ""
    texts = [
        str(each.get("warning", each)) if isinstance(each, dict) else str(each) for each in (warnings if isinstance(warnings, list) else [warnings])
    ]
    return Evidence(
        test=str(test.get("name", ""))[:SAID_MAX],
        status=str(result.get("status", "")).lower()[:40],
        index=index,
        said="; ".join(filter(None, texts))[:SAID_MAX],
    )
