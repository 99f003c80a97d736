"""Whatever a tenant writes, Slurm is asked the same; and the script that it is given runs just that, on the real shell and by the real keeper."""

import asyncio
import getpass
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from headframe.engines.slurm.directory import Shared, script
from headframe.engines.slurm.engine import Line
from headframe.engines.slurm.words import SlurmNode
from headframe.model.engine import EngineSetup
from headframe.model.states import AllocationState
from headframe.model.work import Allocation, Part, Tier
from support import job

NASTY = st.sampled_from(
    [
        "$(touch owned)",
        "`id`",
        "'",
        '"',
        "\\",
        "\n",
        "\n#SBATCH --wrap=x\n",
        ";",
        "&&",
        "${IFS}",
        "%s",
        "\u202e",
        "🙂",
        "\r",
        "--",
        "*",
        "~",
        "!",
        "\x1b[31m",
    ]
)
TEXT = st.lists(NASTY | st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00")), max_size=8).map("".join)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True).map(lambda name: f"T_{name}")
SAID = "import json, os, sys; json.dump([sys.argv[1], {k: v for k, v in os.environ.items() if k.startswith('T_')}], open('said', 'w'))"
FOLDERS = st.lists(st.sampled_from(["a", " ", "'", '"', "$x", "$(touch owned)", "`id`", ";", "ü", "\\", "&", "(", "*"]), min_size=1, max_size=6).map(
    "".join
)


def allocation():
    part = Part(rank=0, node_id="node-1", shares=(), cpu_milli=1000, memory_mib=256, disk_mib=10)
    return Allocation(
        id="wl-1.1", workload_id="wl-1", project_id="pr-1", attempt=1, tier=Tier.ON_DEMAND, parts=(part,), state=AllocationState.GRANTED, granted_ms=1
    )


def setup(shared):
    return EngineSetup(id="en-1", url="http://x", key_file="/none", user=getpass.getuser(), shared=str(shared), python=sys.executable)


@given(run=TEXT, first=TEXT, env=st.dictionaries(NAMES, TEXT, max_size=5))
def test_what_slurm_is_asked_does_not_depend_on_what_a_tenant_wrote(run, first, env):
    async def asked(workload):
        line = Line(setup("/shared"), Path("/none"), lambda: 1, lambda: None, lambda: True)
        line.shared.keeper = Path("/shared/keeper")
        try:
            return line._request(allocation(), workload, [SlurmNode(name="n1", cpus=4, gres="gpu:rtx3090:4")])
        finally:
            await line.close()

    assert asyncio.run(asked(job(1, run=run, setup=first, env=env, gpus=0))) == asyncio.run(asked(job(1, run="true", gpus=0)))


@settings(max_examples=40, deadline=None)
@given(folder=FOLDERS, argument=TEXT, env=st.dictionaries(NAMES, TEXT, max_size=5))
def test_the_script_runs_what_the_tenant_wrote_letter_by_letter_and_nothing_else(folder, argument, env):
    with tempfile.TemporaryDirectory() as root:
        shared = Shared(setup(Path(root) / folder))
        shared.make()
        run = f"{sys.executable} -c {shlex.quote(SAID)} {shlex.quote(argument)}"
        shared.prepare(allocation(), job(1, run=run, env=env), ["n1"], "127.0.0.1", Path(root))
        held = shared.of(allocation().id)
        done = subprocess.run(["/bin/sh", "-c", script(shared.setup, shared.keeper, held.path, 1)], cwd=root, capture_output=True, timeout=30,
                              env={"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"})  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b""), (done, held.journals())
        assert json.loads((held.rank(0) / "work" / "said").read_text()) == [argument, env]
        assert sorted(path.name for path in Path(root).iterdir()) == [folder]
        assert [line.event for line in held.journals()[0]] == ["starting", "running", "ended"]
        assert held.claimed() == 7
