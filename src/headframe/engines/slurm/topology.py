"""On which switch, or in which block, a machine is: by Slurm's topology, which only its own commands tell, where the server's machine has them."""

import asyncio
import contextlib
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE

from headframe.engines.slurm.words import hosts

LIMIT_S = 10.0
_PAIR = re.compile(r"(\w+)=(\S+)")


def leaves(told: str) -> dict[str, str]:
    """Machines and what they hang on, of `scontrol show topology`: a switch of the lowest level (topology/tree), else a block (topology/block)."""
    found: dict[str, str] = {}
    for line in told.splitlines():
        said = dict(_PAIR.findall(line))
        name = said.get("SwitchName", "") if said.get("Level") == "0" else said.get("BlockName", "")
        for host in hosts(said.get("Nodes", "")) if name else ():
            found[host] = name
    return found


def env() -> dict[str, str]:
    """What Slurm's commands are given of this process's environment."""
    return {name: os.environ[name] for name in ("PATH", "SLURM_CONF", "HOME", "LANG") if name in os.environ}


async def told() -> dict[str, str] | None:
    """What hangs on what now; nothing where Slurm has no topology, None where it can't be asked."""
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        return None
    asked = await asyncio.create_subprocess_exec(scontrol, "show", "topology", env=env(), stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    try:
        async with asyncio.timeout(LIMIT_S):
            said, _ = await asked.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            asked.kill()
        return None
    return None if asked.returncode else leaves(said.decode(errors="replace"))
