"""What the line to a Slurm cluster tells the tick, from what lies on the shared path."""

import asyncio
import json

from headframe.engines.slurm.engine import WHOLE_MS, Line
from headframe.engines.slurm.seen import Seen
from headframe.engines.slurm.words import SlurmJob
from headframe.model.engine import EngineSetup
from headframe.model.states import Reason
from support import NOW_MS

KEYS = ["wl-1.1", "wl-2.1", "wl-3.1"]


def begun(line, key):
    """A directory as it is once the job's keeper has begun."""
    held = line.shared.of(key)
    held.rank(0).mkdir(parents=True)
    (held.path / "by-node").mkdir()
    (held.path / "claim").symlink_to("job-1")
    wrote(line, key, "running")


def wrote(line, key, event):
    with (line.shared.of(key).rank(0) / "journal").open("a") as journal:
        journal.write(json.dumps({"event": event, "at_ms": NOW_MS, "pid": 1, "boot_id": "", "reason": "finished", "exit_code": 0}) + "\n")


def test_the_tick_is_told_of_everything_now_and_then_and_in_between_of_what_was_read(tmp_path):
    clock = [NOW_MS]
    setup = EngineSetup(id="slurm", url="unix:/x", key_file="/k", user="hf", shared=str(tmp_path / "shared"))
    line = Line(setup, tmp_path, lambda: clock[0], lambda: None, lambda: True)
    line.shared.make()
    for key in KEYS:
        begun(line, key)
        line._know(key)
    line._answered_ms = NOW_MS

    def told():
        sight = line.sight()
        return sight.complete, {each.allocation_id: (each.state, each.seen_ms - NOW_MS) for each in sight.observations}

    assert told() == (True, dict.fromkeys(KEYS, ("running", 0)))
    clock[0] += 1
    assert told() == (False, {})
    wrote(line, KEYS[1], "ended")
    asyncio.run(line._read(KEYS[1]))
    assert told() == (False, {KEYS[1]: ("ended", 0)})
    assert told() == (False, {}), "once"
    clock[0] += WHOLE_MS - 1
    running = ("running", WHOLE_MS)
    assert told() == (True, {KEYS[0]: running, KEYS[1]: ("ended", 0), KEYS[2]: running})


def test_slurm_has_lost_a_machine_of_what_waits_again_not_of_what_began_while_it_answered(tmp_path):
    setup = EngineSetup(id="slurm", url="unix:/x", key_file="/k", user="hf", shared=str(tmp_path / "shared"))
    line = Line(setup, tmp_path, lambda: NOW_MS, lambda: None, lambda: True)
    line.shared.make()
    seen, waits = Seen(line.shared.of(KEYS[0])), SlurmJob(job_id=1, job_state="PENDING")
    begun(line, KEYS[0])
    seen.read()
    seen.look([waits], NOW_MS, NOW_MS)
    assert seen.given_up(NOW_MS) is None, "the answer is of before"
    seen.look([waits], NOW_MS + 2000, NOW_MS + 2000)
    assert seen.given_up(NOW_MS + 2000) == (Reason.NODE_LOST, "Slurm lost a machine of it, and would start it anew")
