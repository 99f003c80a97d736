"""Whether a Slurm cluster can be used, before it is: each verdict with what it limits and what would mend it. The last word has a job of our own."""

import asyncio
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from headframe.engines.slurm.directory import Shared, give, owner_of
from headframe.engines.slurm.rest import SlurmRest
from headframe.engines.slurm.words import JobRequest, SlurmNode, SlurmRefused, gpus
from headframe.engines.supervisor import look_anew
from headframe.model.api import EngineFinding
from headframe.model.engine import EngineSetup
from headframe.model.errors import Unavailable

PROBE_S, LOOK_S = 20.0, 0.3
TIMEOUT_MAX_S = 60
_PROBE = """#!/bin/sh
cat {asked} >{answer}.new 2>&1; echo >>{answer}.new
{{ {python} -c 'import sys; print("python", "%d.%d" % sys.version_info[:2])' || echo "python none"; }} >>{answer}.new 2>&1
id -un | sed 's/^/user /' >>{answer}.new
command -v podman >/dev/null && echo "podman yes" >>{answer}.new
scontrol show config 2>/dev/null | sed 's/^/conf /' >>{answer}.new
mv {answer}.new {answer}
"""


async def examine(setup: EngineSetup, clock_ms: Callable[[], int]) -> list[EngineFinding]:
    """All verdicts, most basic first; it stops at what makes the rest impossible to tell."""
    rest = SlurmRest(setup, clock_ms)
    found: list[EngineFinding] = []
    try:
        found.append(_key(setup))
        if found[-1].verdict != "bad":
            found.append(await _answers(rest, setup))
        if found[-1].verdict != "bad":
            found += _machines([node for node in await rest.nodes() if not setup.partition or setup.partition in node.partitions], setup)
        if all(each.verdict != "bad" for each in found):
            found.append(await asyncio.to_thread(_path, setup))
        if all(each.verdict != "bad" for each in found):
            found += await _job(rest, setup)
    except (Unavailable, SlurmRefused, msgspec.DecodeError) as error:
        found.append(_bad("Slurm", str(error), "see slurmrestd's log"))
    finally:
        await rest.close()
    return found


def _good(what: str, finding: str) -> EngineFinding:
    return EngineFinding(what=what, verdict="good", finding=finding)


def _limited(what: str, finding: str, mend: str = "") -> EngineFinding:
    return EngineFinding(what=what, verdict="limited", finding=finding, mend=mend)


def _bad(what: str, finding: str, mend: str = "") -> EngineFinding:
    return EngineFinding(what=what, verdict="bad", finding=finding, mend=mend)


def _key(setup: EngineSetup) -> EngineFinding:
    try:
        size = len(Path(setup.key_file).read_bytes())
    except OSError as error:
        return _bad(
            "key",
            f"{setup.key_file} can't be read: {error.strerror}",
            "give the file named in slurm.conf's AuthAltParameters=jwt_key=…, readable by the server",
        )
    if size < 16:
        return _bad("key", f"{setup.key_file} has {size} bytes", "a key has 32: `dd if=/dev/random of=jwt_hs256.key bs=32 count=1`")
    return _good("key", f"tokens are signed with {setup.key_file}")


async def _answers(rest: SlurmRest, setup: EngineSetup) -> EngineFinding:
    try:
        pinged = await rest.ping()
    except Unavailable as error:
        return _bad("slurmrestd", error.detail, "start it with `-a rest_auth/jwt`, and give its address or socket as --url")
    except SlurmRefused as no:
        return _bad(
            "slurmrestd", f"it refuses {setup.user}: {no}", "is this the key that slurmctld has (AuthAltTypes=auth/jwt), and a user that Slurm knows?"
        )
    if not pinged.up:
        return _bad("slurmctld", "slurmrestd answers, the controller does not", "start slurmctld")
    return _good("Slurm", f"{pinged.release or 'its controller'} answers, spoken to as {rest.dialect}")


def _machines(nodes: list[SlurmNode], setup: EngineSetup) -> Iterator[EngineFinding]:
    where = f"partition {setup.partition}" if setup.partition else "the cluster"
    up = [node for node in nodes if not node.lost]
    if not up:
        yield _bad("machines", f"{where} has {len(nodes)} machines, and none is up", "`sinfo -R` says why")
        return
    verdict = "good" if len(up) == len(nodes) else "limited"
    yield EngineFinding(
        what="machines",
        verdict=verdict,
        finding=f"{len(up)} of {len(nodes)} machines of {where} are up",
        mend="" if len(up) == len(nodes) else "`sinfo -R` says why",
    )
    cards = [(kind, count) for node in up for kind, count in gpus(node.gres)]
    untyped = sum(count for kind, count in cards if not kind)
    if not cards:
        yield _limited("GPUs", "Slurm lists no GPU: only work without cards runs there", "set GresTypes=gpu, and Gres=gpu:TYPE:N for each machine")
    elif untyped:
        yield _limited(
            "GPUs",
            f"{untyped} of {sum(count for _, count in cards)} GPUs have no type: they can't be asked for by model",
            "name it: Gres=gpu:rtx3090:4",
        )
    else:
        kinds = {kind: sum(count for each, count in cards if each == kind) for kind, _ in cards}
        yield _good("GPUs", ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())))


def _path(setup: EngineSetup) -> EngineFinding:
    try:
        Shared(setup).make()
    except OSError as error:
        return _bad(
            "shared path", f"{setup.shared} can't be used: {error}", "make it on a file system that the server and all machines mount under this path"
        )
    return _good("shared path", f"{setup.shared} can be written here")


async def _job(rest: SlurmRest, setup: EngineSetup) -> list[EngineFinding]:
    """A job on one machine reads what we wrote on the shared path, writes what it is asked, and tells how Slurm is set up."""
    mark, at = secrets.token_hex(8), Path(setup.shared) / f"probe-{secrets.token_hex(6)}"
    try:
        await asyncio.to_thread(_laid, at, mark, setup)
        node = next((each for each in await rest.nodes() if _takes_work(each, setup)), None)
        if node is None:
            return [_bad("a job", "no machine takes work now", "`sinfo -R` says why")]
        return await _asked(rest, setup, node, at, mark)
    except SlurmRefused as no:
        mend = "has the user an association (`sacctmgr add user`), and the partition room for 100 MB?"
        return [_bad("a job", f"Slurm refuses a job of {setup.user}: {no}", mend)]
    except (OSError, ValueError) as error:
        return [_bad("shared path", str(error), "see to its rights, and to --user")]
    finally:
        await asyncio.to_thread(shutil.rmtree, at, ignore_errors=True)


async def _asked(rest: SlurmRest, setup: EngineSetup, node: SlurmNode, at: Path, mark: str) -> list[EngineFinding]:
    answer = at / "answer"
    text = _PROBE.format(asked=shlex.quote(str(at / "mark")), answer=shlex.quote(str(answer)), python=shlex.quote(setup.python))
    number = await rest.submit(
        JobRequest(
            name="headframe-probe", comment="", script=text, nodes=(node.name,), cpus=max(1, node.threads), memory_mib=100, gpus=(), minutes=2,
            output=str(at / "out"), cwd="/", partition=setup.partition,
        ), setup.user,
    )  # fmt: skip
    for _ in range(int(PROBE_S / LOOK_S)):
        look_anew(answer.parent)
        if answer.exists():
            return list(told(answer.read_text(errors="replace").splitlines(), mark, setup, node.name))
        await asyncio.sleep(LOOK_S)
    await rest.cancel(number, setup.user)
    mend = f"is {setup.shared} the same directory on {node.name}, and may {setup.user} write there? `scontrol show job {number}` says what Slurm made of it"
    return [_bad("a job", f"a job of ours on {node.name} wrote nothing to {setup.shared} in {PROBE_S:g} s", mend)]


def _takes_work(node: SlurmNode, setup: EngineSetup) -> bool:
    return not node.lost and not node.drained and (not setup.partition or setup.partition in node.partitions)


def _laid(at: Path, mark: str, setup: EngineSetup) -> None:
    """A directory of the probe's own, which belongs to whom it runs as."""
    at.mkdir()
    (at / "mark").write_text(mark + "\n")
    give(at, owner_of(setup.user))


def told(lines: list[str], mark: str, setup: EngineSetup, node: str) -> Iterator[EngineFinding]:
    """What the probe's answer says of its machine and of the cluster; its first line is the mark that it found on the shared path."""
    if not lines or lines[0].strip() != mark:
        yield _bad("shared path", f"{node} sees another {setup.shared} than the server: it did not find there what was written here", "mount the same file system there (NFS and the like) under the same path")  # fmt: skip
        return
    yield _good("shared path", f"{node} reads what the server writes at {setup.shared}, and the server what it writes")
    said = {words[0]: words[1] for words in (line.split(" ", 1) for line in lines[1:]) if len(words) == 2 and words[0] != "conf"}
    if said.get("python", "none").startswith("none") or "python" not in said:
        yield _bad("python", f"{setup.python} does not run on {node}: it keeps the work there", "install python3, or give --python")
    else:
        yield _good("python", f"{said['python']} on {node}")
    if "podman" not in said:
        yield _limited("podman", f"not installed on {node}: work with an `image` fails there", "apt install podman crun uidmap passt")
    yield from _configured(_conf(lines))


def _conf(lines: list[str]) -> dict[str, str]:
    """`scontrol show config`, as a job saw it. Later versions list what there may be several of (`Epilog[0]`); the first says that there is one."""
    pairs = (line.removeprefix("conf ").partition("=") for line in lines if line.startswith("conf "))
    return {key.strip().lower().removesuffix("[0]"): value.strip() for key, _, value in pairs if value}


def _configured(conf: dict[str, str]) -> Iterator[EngineFinding]:
    """How the cluster is set up, as far as that limits something."""
    if not conf:
        yield _limited("configuration", "`scontrol` is not on its machines: how the cluster is set up is not known")
        return
    if "cons" not in conf.get("selecttype", ""):
        yield _bad(
            "SelectType",
            f"{conf.get('selecttype', 'not set')} gives whole machines only",
            "set SelectType=select/cons_tres, SelectTypeParameters=CR_Core_Memory",
        )
    elif "memory" not in conf.get("selecttypeparameters", "").lower():
        yield _limited("SelectType", "memory is not counted: work can starve its neighbours", "set SelectTypeParameters=CR_Core_Memory")
    else:
        yield _good("SelectType", f"{conf['selecttype']}, {conf['selecttypeparameters']}")
    confined = "cgroup" in conf.get("taskplugin", "") and conf.get("constraindevices", "yes") == "yes"
    if confined and "cgroup" in conf.get("proctracktype", ""):
        yield _good("cgroups", f"{conf['proctracktype']}, {conf['taskplugin']}")
    else:
        yield _limited("cgroups", f"ProctrackType={conf.get('proctracktype', '')}, TaskPlugin={conf.get('taskplugin', '')}: work is not held to its cards, memory and cores", "set ProctrackType=proctrack/cgroup, TaskPlugin=task/cgroup, and ConstrainDevices=yes, ConstrainRAMSpace=yes, ConstrainCores=yes in cgroup.conf")  # fmt: skip
    lost_s = next((int(word) for word in conf.get("slurmdtimeout", "0").split() if word.isdigit()), 0)
    if lost_s > TIMEOUT_MAX_S:
        yield _limited(
            "SlurmdTimeout", f"Slurm notices a lost machine after {lost_s} s", "set SlurmdTimeout=30: a gang is then elsewhere within a minute"
        )
    if "slurmdbd" not in conf.get("accountingstoragetype", ""):
        yield _limited(
            "accounting", "Slurm keeps no accounts: the ledger can't be compared with them", "set AccountingStorageType=accounting_storage/slurmdbd"
        )
    else:
        yield _good("accounting", conf["accountingstoragetype"])
    yield from _switches(conf.get("topologyplugin", ""))
    if conf.get("epilog", "(null)") in {"(null)", ""}:
        yield _limited(
            "hand-over",
            "no Epilog: between two holders of a card nothing is looked at, overwritten or set back",
            "set Epilog to a script that runs `headframe agent clean` on SLURM_JOB_GPUS, as `headframe cluster init` does",
        )
    else:
        yield _good("hand-over", conf["epilog"])
    yield _own_tmp(conf.get("jobcontainertype") or conf.get("namespacetype", ""))  # as it was and is called


def _own_tmp(plugin: str) -> EngineFinding:
    if "tmpfs" in plugin:
        return _good("private /tmp", plugin)
    return _limited("private /tmp", "jobs share their machine's /tmp", "set JobContainerType=job_container/tmpfs and PrologFlags=contain")


def _switches(plugin: str) -> Iterator[EngineFinding]:
    """Whether it is known what machines hang on, where the cluster says so at all."""
    if not plugin.endswith(("tree", "block")):
        return
    if shutil.which("scontrol") is not None:
        yield _good("switches", f"{plugin}: machines stand at their leaf switch, or in their block")
    else:
        yield _limited(
            "switches",
            f"Slurm knows them ({plugin}), and only its own commands tell: machines stand where their features say",
            "install Slurm's client commands on the server's machine (Debian: slurm-client)",
        )
