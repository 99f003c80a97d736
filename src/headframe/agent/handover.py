"""What lies between two holders of a card: whoever was there is gone, what they set is undone, what they left is overwritten; else it is fenced.

Done in a child (a wedged driver holds it, not us) before work gets whole cards. Processes of others and memory in use have to be gone within `WAIT_S`; clocks and
offsets that miners set go back to the maker's, power limits stay (they may be the operator's); all free memory is filled with a pattern, read back in places,
and zeroed, through the maker's own library. Shared cards and checks are left as they are.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence

import msgspec
import psutil

from headframe.agent.cards import Card, identified, opened
from headframe.agent.helper import StockClocks, ask
from headframe.agent.scrub import scrubbed
from headframe.agent.vendor import Gone

LIMIT_S, WAIT_S, LOOK_S = 15.0, 8.0, 0.25
LEFT_MIB = 1024
"""Used by no process: the driver's own, and a display's."""
_CHOSEN = frozenset({"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"})


async def clean(cards: Sequence[str]) -> dict[str, str]:
    """Hand these cards over, called by UUID or by number on this machine; what could not be made clean, by that, with the reason."""
    env = {name: value for name, value in os.environ.items() if name not in _CHOSEN}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headframe.agent.handover", *cards, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL, env=env
    )
    try:
        said, _ = await asyncio.wait_for(child.communicate(), LIMIT_S)
        return msgspec.json.decode(said, type=dict[str, str])
    except TimeoutError:
        return dict.fromkeys(cards, f"its driver did not answer in {LIMIT_S:g} s")
    except msgspec.DecodeError:
        return dict.fromkeys(cards, f"its hand-over ended with {child.returncode}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()


def handed(cards: Sequence[str]) -> dict[str, str]:
    """The work of the child."""
    with opened() as there:
        known = {name: (card, uuid) for card, uuid in identified(there) for name in (uuid, str(card.number))}
        until = time.monotonic() + WAIT_S
        unclean = {name: _handed(*known[name], until) if name in known else "no driver answers for it" for name in cards}
    return {name: why for name, why in unclean.items() if why}


def _handed(card: Card, uuid: str, until: float) -> str:
    try:
        return _held(card, until) or _set_back(card, uuid) or scrubbed(card.vendor.library, card.vendor.placed(card.number).get("pci_bus", ""))
    except Gone as error:
        return f"its driver says: {error}"


def _held(card: Card, until: float) -> str:
    """Who is still there, or what is still in its memory."""
    while True:
        pids, used = card.vendor.processes(card.number), card.vendor.used_mib(card.number)
        if not pids and used <= LEFT_MIB:
            return ""
        if time.monotonic() >= until:
            who = ", ".join(f"{pid} ({_name(pid)})" for pid in pids[:3])
            return f"process {who} is on it" if pids else f"{used} MiB of its memory are in use by nobody that is known"
        time.sleep(LOOK_S)


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "not of this machine's view"


def _set_back(card: Card, uuid: str) -> str:
    """Clocks as the maker set them, by the helper where this process may not. What is still not as it should be is told."""
    card.vendor.stock(card.number)
    if card.vendor.off_stock(card.number):
        ask(StockClocks(gpu_id=uuid))
    off = card.vendor.off_stock(card.number)
    return f"{off}, and only root may set it back: run `headframe agent helper` as root" if off else ""


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(handed(sys.argv[1:])).decode())
