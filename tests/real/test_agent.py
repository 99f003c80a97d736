"""A machine that joined: a real agent in a process of its own, told by a real server what to do, both killed at will."""

import os
import signal
import time

import pytest

from headframe.client import ApiError
from headframe.model.agent import Account, AddBody, Batch
from headframe.model.health import Report, Sample
from headframe.model.states import AllocationState, NodeState, Reason, Service
from headframe.model.api import ServiceBody, SiteBody
from headframe.model.power_api import CoinBody
from headframe.model.work import Observation
from support import Rig, Server, fake_nvml, free_port, hello, join, wait_for
from test_fillers import STAND_IN

pytestmark = pytest.mark.slow
TWO_CARDS = """
-1.count 2
*.name NVIDIA GeForce RTX 3090
0.uuid GPU-far-1
1.uuid GPU-far-2
*.memory_mib 24576
*.capability 8.6
0.bus 00000000:01:00.0
1.bus 00000000:02:00.0
*.limit_mw 350000
*.temp 61
*.slowdown 95
*.use 97
*.field230 0
"""
JOB = """
name: {name}
run: |
  cat data.txt; echo on $(basename "$PWD"); echo card $CUDA_VISIBLE_DEVICES
  {run}
workdir: .
resources: {{gpu: 1, cpu: 0.1, memory: 10MB, disk: 1MB}}
"""


@pytest.fixture
def server(tmp_path):
    made = Server(tmp_path).start("--no-check-new")
    yield made
    made.kill()


@pytest.fixture
def rig(server, tmp_path):
    state = tmp_path / "state"
    state.write_text(TWO_CARDS)
    made = Rig(tmp_path / "rig", server)
    made.environment = {"LD_LIBRARY_PATH": str(fake_nvml(tmp_path).parent), "FAKE_NVML_STATE": str(state)}
    made.state = state
    made.join(**made.environment)
    yield made
    if made.process.poll() is None:
        made.kill()


def seen(operator, name="rig-1"):
    return next((view for view in operator.nodes() if view.node.name == name), None)


def submit(tenant, tmp_path, name, run):
    work = tmp_path / f"work-{name}"
    work.mkdir()
    (work / "data.txt").write_text("the data\n")
    return tenant.submit(JOB.format(name=name, run=run), work)


def test_a_machine_joins_with_one_command_and_work_runs_there_with_its_files_its_card_and_its_log(server, rig, tmp_path):
    with server.operator() as operator, server.tenant() as tenant:
        view = wait_for(lambda: seen(operator))
        assert (view.node.engine, len(view.gpus), view.node.state) == ("joined", 2, NodeState.READY)
        assert next(row.rack.name for row in operator.racks().items if row.rack.id == view.node.rack_id) == "shed"
        submit(tenant, tmp_path, "far", "sleep 600")
        wait_for(lambda: tenant.workload("far").workload.state == "running")
        lines = wait_for(lambda: [line.text for line in tenant.logs("far").lines] if len(tenant.logs("far").lines) >= 3 else None)
        assert lines[0] == "the data"
        assert lines[2] in {"card 0", "card 1", "card GPU-far-1", "card GPU-far-2"}
        readings = wait_for(lambda: (items := operator.readings("rig-1").items) and all(item.sample for item in items) and items)
        assert [item.sample.temperature_c for item in readings] == [61, 61]
        began = time.monotonic()
        tenant.stop("far")
        wait_for(lambda: tenant.workload("far").workload.state == "cancelled")
        assert time.monotonic() - began < 15
        assert [line.text for line in tenant.logs("far").lines][:1] == ["the data"]


def test_work_outlives_the_agent_and_the_server_and_is_started_once_and_billed_once(server, rig, tmp_path):
    with server.operator() as operator, server.tenant() as tenant:
        wait_for(lambda: seen(operator))
        marks = tmp_path / "marks"
        submit(tenant, tmp_path, "long", f"echo $$ >> {marks}; while [ ! -e {tmp_path}/go ]; do sleep 0.1; done")
        wait_for(marks.exists)
        rig.kill()
        server.kill()
        server.start()
        assert tenant.workload("long").workload.state == "running"
        rig.run(**rig.environment)
        (tmp_path / "go").touch()
        done = wait_for(lambda: (view := tenant.workload("long")).workload.state == "succeeded" and view)
        assert len(marks.read_text().split()) == 1
        assert done.workload.attempt == 1
        wait_for(lambda: tenant.workload("long").workload.closed)
        ends = sorted((row.start_ms, row.end_ms) for row in tenant.usage(workload="long").items)
        assert all(before[1] == after[0] for before, after in zip(ends, ends[1:], strict=False))


def test_a_server_and_an_agent_that_are_told_to_end_do_so_at_once_and_cut_nobody_off(server, rig):
    with server.operator() as operator:
        wait_for(lambda: seen(operator))
    began = time.monotonic()
    server.kill(signal.SIGTERM)
    rig.kill(signal.SIGTERM)
    assert time.monotonic() - began < 10, "neither waits for the other's question"
    assert "Traceback" not in server.log + rig.log
    assert "cancel" not in server.log.lower()
    assert "refused" not in rig.log


def test_a_card_that_a_far_machine_loses_goes_out_of_service_here(server, rig):
    with server.operator() as operator:
        wait_for(lambda: (view := seen(operator)) and len(view.gpus) == 2)
        wait_for(lambda: all(item.sample for item in operator.readings("rig-1").items))
        with rig.state.open("a") as state:
            state.write("1.lost 1\n")
        wait_for(lambda: [gpu.state for gpu in seen(operator).gpus] == ["ready", "suspect"])


def test_work_ends_by_itself_where_its_lease_is_over(server, rig, tmp_path):
    with server.operator() as operator, server.tenant() as tenant:
        wait_for(lambda: seen(operator))
        submit(tenant, tmp_path, "leased", "sleep 600")
        wait_for(lambda: tenant.workload("leased").workload.state == "running")
        first = tenant.workload("leased").allocations[0]
        rig.kill()  # nobody renews it any more, and the server is told nothing
        (rig.data / "lease").write_text(f"{time.clock_gettime(time.CLOCK_BOOTTIME):.3f}")
        journal = rig.data / "allocations" / "active" / first.id / "journal"
        wait_for(lambda: '"ended"' in journal.read_text(), limit_s=40)
        assert '"reason": "node-lost"' in journal.read_text()
        rig.run(**rig.environment)
        again = wait_for(lambda: max(tenant.workload("leased").allocations, key=lambda each: each.attempt).attempt == 2 and tenant.workload("leased"))
        assert [each.reason for each in again.allocations if each.attempt == 1] == [Reason.NODE_LOST]


def test_an_agent_that_was_away_for_long_starts_nothing_under_a_lease_that_is_over(server, rig, tmp_path):
    with server.tenant() as tenant:
        wait_for((rig.data / "lease").exists)  # its key is kept, and it has spoken
        rig.kill()
        (rig.data / "lease").write_text("1.000")
        submit(tenant, tmp_path, "later", "echo done")
        wait_for(lambda: tenant.workload("later").workload.state == "starting")
        rig.run(**rig.environment)
        done = wait_for(lambda: (view := tenant.workload("later")).workload.state == "succeeded" and view)
        assert done.workload.attempt == 1


def test_long_lines_of_a_log_come_through_too(server, rig, tmp_path):
    with server.operator() as operator, server.tenant() as tenant:
        wait_for(lambda: seen(operator))
        submit(tenant, tmp_path, "wordy", "for i in $(seq 300); do head -c 16000 /dev/zero | tr '\\\\0' x; echo; done")
        wait_for(lambda: tenant.workload("wordy").workload.state == "succeeded")
        assert sum(len(line.text) == 16_000 for line in tenant.logs("wordy", limit=500).lines) == 300


def test_a_machine_that_was_retired_is_refused_and_its_agent_says_so(server, rig):
    with server.operator() as operator:
        wait_for(lambda: seen(operator))
        operator.move_node("rig-1", ServiceBody(to=Service.DRAIN))
        wait_for(lambda: seen(operator).node.state is NodeState.MAINTENANCE)
        operator.move_node("rig-1", ServiceBody(to=Service.RETIRE))
        assert rig.process.wait(timeout=40) == 3
        assert "join again" in rig.log


def test_a_token_works_once_and_a_twin_is_refused(server):
    with server.operator() as operator:
        first, joined = join(server, operator, 7, gpus=1)
        first.report(Account(clock_ms=0))
        token = operator.invite(AddBody()).token
        with type(first)(server.url, token) as twin:
            with pytest.raises(ApiError, match="same identity"):
                twin.join(hello(7))
            thief = hello(8, gpus=1)
            stolen = [type(card)(**{**{f: getattr(card, f) for f in card.__struct_fields__}, "id": "GPU-7-0"}) for card in thief.gpus]
            with pytest.raises(ApiError, match="is in joined-7"):
                twin.join(type(thief)(node=thief.node, gpus=tuple(stolen)))
            twin.join(hello(8))
            with pytest.raises(ApiError, match="revoked"):
                twin.join(hello(9))
        own = next(view.node for view in operator.nodes() if view.node.engine == "local")
        with type(first)(server.url, operator.invite(AddBody()).token) as copy, pytest.raises(ApiError, match="same identity"):
            copy.join(type(thief)(node=type(own)(**{**{f: getattr(own, f) for f in own.__struct_fields__}})))


def test_a_machine_tells_of_nobody_else(server):
    with server.operator() as operator, server.tenant() as tenant:
        tenant.submit("name: mine\nrun: sleep 600\nresources: {gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}")
        held = wait_for(lambda: (view := tenant.workload("mine")).workload.state == "running" and view.allocations[0])
        far, _ = join(server, operator, 5, gpus=1)
        lie = Observation(allocation_id=held.id, state=AllocationState.ENDED, reason=Reason.FAILED, ended_ms=1)
        others = Sample(gpu_id="GPU-of-another", at_ms=0, temperature_c=150)
        far.report(Account(clock_ms=0, observations=(lie,), batches=(Batch(age_ms=0, report=Report(samples=(others,))),)))
        operator.move_node("joined-5", ServiceBody(to=Service.DRAIN))  # a tick has run once this is carried out
        wait_for(lambda: seen(operator, "joined-5").node.state is NodeState.MAINTENANCE)
        assert tenant.workload("mine").workload.state == "running"
        for path in ("", ".", "../allocations", "wl-1.1/../..", "wl-1", "/etc", "wl-1.1\n"):
            with pytest.raises(ApiError, match="an allocation is named by"):
                far.report(Account(clock_ms=0, observations=(Observation(allocation_id=path, state=AllocationState.ENDED, reason=Reason.FAILED),)))
        with pytest.raises(ApiError, match="another machine"):
            far.report(Account(clock_ms=0, hello=hello(6)))
        with pytest.raises(ApiError, match="no such workdir"):
            far._get("/v1/agent/workdirs/" + "0" * 64, dict)
        tenant.stop("mine")


def test_the_agent_refuses_orders_of_an_older_leader(tmp_path):
    from headframe.agent.run import mine
    from headframe.agent.seat import Seat
    from headframe.model.agent import Orders

    seat = Seat(url="", key="", node_id="node-1", name="")
    assert mine(Orders(epoch=3, node_id="node-1"), seat, tmp_path)
    assert mine(Orders(epoch=4, node_id="node-1"), seat, tmp_path)
    assert not mine(Orders(epoch=3, node_id="node-1"), seat, tmp_path)
    assert not mine(Orders(epoch=9, node_id="node-2"), seat, tmp_path)
    assert os.listdir(tmp_path) == ["epoch"]


def test_what_the_miners_of_a_far_machine_say_is_read_there_and_shown_here(server, rig):
    with server.operator() as operator:
        wait_for(lambda: seen(operator))
        operator.set_site(operator.sites().items[0].name, SiteBody(tariff="name: flat\nenergy: [{price: 0.01}]\n"))
        operator.tell_coin("RVN", CoinBody(price_usd=0.02, network_hs=5e12, block_s=60, reward=2500))
        operator.set_filler(STAND_IN.replace("stats: t-rex", f"stats: t-rex\nport: {free_port()}"))
        shown = wait_for(
            lambda: (row := operator.fillers().items[0]).read == 90e6 and row, limit_s=90
        )  # the two miners may answer one after the other
        assert (shown.cards, shown.read, shown.promised) == (2, 90e6, 100e6)
