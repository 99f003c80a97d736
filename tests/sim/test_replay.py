"""Traces through the real tick: what comes out is what went in, and the same again."""

import json

import pytest
from typer.testing import CliRunner

from headframe.cli.main import app
from headframe.model.report import Policy
from headframe.model.states import AllocationState, Reason
from headframe.simulate.replay import Fast, Replay, Setting
from headframe.simulate.report import report
from headframe.simulate.traces import BadTrace, Job, generate, read_fleet, read_jobs
from headframe.simulate.world import run_now

FLEET = "6x8xH100"


def replayed(jobs, fleet=FLEET, **setting):
    replay = Replay(read_fleet(fleet), jobs, Setting(**setting))
    for _ in replay.steps():
        pass
    return replay


def test_every_job_of_a_trace_runs_once_for_as_long_as_it_says_and_is_billed_for_it():
    jobs = generate(120, read_fleet(FLEET), 0.9, seed=3)
    replay = replayed(jobs)
    assert len(replay.ran) == 120
    assert all(abs(ran.ended_s - ran.started_s - ran.run_s) < 0.01 and ran.started_s >= ran.submitted_s for ran in replay.ran)
    assert not replay.world.workloads, "all are closed and forgotten"
    assert not any(replay.world.gpu_use_milli.values())
    result = report(replay, FLEET, "made up", 1.0)
    assert result.revenue_usd > 0
    assert result.groups[0].jobs == 120


def test_equal_traces_end_equally():
    jobs = generate(60, read_fleet(FLEET), 1.1, seed=4)
    assert replayed(jobs).ran == replayed(jobs).ran


@pytest.mark.parametrize("policy", list(Policy))
def test_every_policy_runs_every_job(policy):
    assert len(replayed(generate(30, read_fleet("2x8"), 0.9, seed=1), "2x8", policy=policy).ran) == 30


def test_a_gang_starts_though_small_work_never_ceases():
    small = [Job(at_s=i * 300.0, run_s=4000.0, milli=1000) for i in range(400)]
    gang = Job(at_s=3000.0, run_s=600.0, milli=8000, nodes=2)
    jobs = sorted([*small, gang], key=lambda job: job.at_s)
    replay = replayed(jobs, "2x8")
    started = next(ran.started_s for ran in replay.ran if ran.gpus == 16)
    assert started < 4 * 4000, "it waits for what runs, not for what comes after it"


def test_short_work_passes_a_waiting_gang_only_where_it_does_not_delay_it():
    long = Job(at_s=0, run_s=7200.0, milli=8000)
    gang = Job(at_s=60, run_s=600.0, milli=8000, nodes=2)
    short = Job(at_s=120, run_s=1800.0, milli=8000)
    ran = {(r.gpus, r.run_s): r for r in replayed([long, gang, short], "2x8", limits=1.1, step_s=1).ran}
    assert ran[8.0, 1800.0].started_s < 200
    assert ran[16.0, 600.0].started_s <= 7200 * 1.1 + 60


def test_spot_work_gives_way_and_runs_again():
    spot = [Job(at_s=0, run_s=7200.0, milli=8000) for _ in range(2)]
    firm = Job(at_s=3600, run_s=600.0, milli=8000)
    replay = Replay(read_fleet("2x8"), [*spot, firm], Setting(spot=0.02, step_s=1))
    for _ in replay.steps():
        pass
    assert replay.preempted == 1
    assert len(replay.ran) == 3
    assert next(ran for ran in replay.ran if ran.run_s == 600).started_s < 3700


def test_job_files_are_told_by_their_columns(tmp_path):
    files = {
        "philly": "timestamp,duration,num_gpus,gpu_time,cluster\n2017-10-09 07:00:00,60,16,0,a\n2017-10-09 07:01:00,60,1,0,b\n",
        "helios": "job_id,user,gpu_num,cpu_num,node_num,state,submit_time,start_time,end_time,duration,queue\n1,u,16,1,2,COMPLETED,2020-04-01 00:00:00,x,y,60,0\n2,u,1,1,1,COMPLETED,2020-04-01 00:01:00,x,y,60,0\n",
        "acme": "job_id,user,node_num,gpu_num,cpu_num,mem_per_pod_GB,type,state,submit_time,duration\n1,u,2,16,8,10,pretrain,DONE,2023-04-01 00:00:00+08:00,60\n2,u,1,1,8,10,eval,DONE,2023-04-01 00:01:00+08:00,60\n",
        "itp": "cluster,submission_time,duration,num_gpu\n01,100,60,16\n02,160,60,1\n",
        "plain": "submit_s,duration_s,gpus,tenant\n5,60,16,a\n65,60,1,b\n",
    }
    for name, text in files.items():
        path = tmp_path / f"{name}.csv"
        path.write_text(text)
        jobs = read_jobs([str(path)])
        assert [(job.at_s, job.run_s, job.milli, job.nodes) for job in jobs] == [(0, 60, 8000, 2), (60, 60, 1000, 1)], name
    openb = tmp_path / "openb.csv"
    openb.write_text("cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,creation_time,deletion_time\n4000,100,1,460,V100M16|V100M16,0,60\n")
    assert read_jobs([str(openb)]) == [Job(at_s=0, run_s=60, milli=460, cpu_milli=4000, memory_mib=100, model="V100M16")]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "submit_s,duration_s,gpus\n1,x,1\n", "submit_s,duration_s,gpus\n"])
def test_a_bad_trace_is_refused_with_the_place(tmp_path, text):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(BadTrace):
        read_jobs([str(path)])
    for fleet in ("8xH100", "0x8", "4x0", "4x99", str(path)):
        with pytest.raises(BadTrace):
            read_fleet(fleet)


def test_the_command_compares_policies_and_writes_a_page(tmp_path):
    page = tmp_path / "report.html"
    ran = CliRunner().invoke(
        app, ["simulate", "--fleet", "4x8xH100+2x4xA10", "--jobs", "40", "--policy", "headframe,fgd", "--html", str(page), "--json"]
    )
    assert ran.exit_code == 0, ran.output
    reports = json.loads(ran.stdout)
    assert [report["policy"] for report in reports] == ["headframe", "fgd"]
    assert reports[0]["gpus"] == 40
    assert "simulated" in page.read_text()
    for wrong in (["--policy", "magic"], ["--fleet", "0x8"], ["--trace", "none.csv"], ["--html", str(tmp_path / "no" / "where.html")]):
        refused = CliRunner().invoke(app, ["simulate", "--fleet", "4x8", "--jobs", "5", *wrong])
        assert refused.exit_code != 0
        assert isinstance(refused.exception, SystemExit), refused.exception


def test_what_is_stopped_before_it_was_started_is_over():
    """Or its cards would be held for ever: a filler that makes room in the tick that granted it."""
    engine = Fast(("node-0",), lambda: 5000, lambda _: 1000)
    run_now(engine.stop("wl-1.1", Reason.PREEMPTED, 0))
    seen = run_now(engine.observe()).observations
    assert [(each.allocation_id, each.state, each.reason) for each in seen] == [("wl-1.1", AllocationState.ENDED, Reason.PREEMPTED)]
