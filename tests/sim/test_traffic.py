"""An endpoint under replayed requests, with the real scaling, placement, table, holding and choosing, in a world whose machines, model and time are made up."""

import pytest

from headframe.model.errors import BadRequest
from headframe.model.serving import Serving
from headframe.server.demand import Demand
from headframe.simulate.traffic import Asked, Model, Traffic, read_load, waves
from headframe.simulate.world import Config, SimulationFailed

SERVING = Serving(replicas_min=0, replicas_max=4, target=8, idle_s=600)


def replay(asked, *, seed=1, serving=SERVING, model=None, **more):
    settings = {"seed": seed, "nodes": 6, "hours": 3, "jobs_per_hour": 0, "faults": False, "servers": 1, **more}
    return Traffic(Config(**settings), serving, asked, model)


def test_from_nothing_to_four_and_back_twice_no_request_is_lost_and_none_waits_longer_than_a_cold_start():
    asked = list(waves(1, 2, 4.0))
    report = replay(asked).replayed()
    assert report.answered == report.requests == len(asked) > 5000
    assert [n for _, n in report.ready].count(0) == 3, "nothing, between the waves, and after"
    assert report.replicas_most == 4
    assert report.ready[-1][1] == 0
    assert 0 < report.held < 40
    assert report.wait_most_ms < Model().load_ms + 3000, "a cold start and the seconds in which it is decided"
    assert report.added_p99_ms < 5000, "who is not held is hardly slowed while others start"
    assert report.replica_h < 4 * 2 * 0.6, "much less than four all the time"


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_under_faults_every_request_is_answered_or_refused_or_lost_with_its_machine(seed):
    """What of the scaling's own promises may be broken is checked as it happens: who is drained is not stopped with a request on it."""
    asked = list(waves(seed, 0.8, 1.5))
    runs = [replay(asked, seed=seed, nodes=6, hours=1, jobs_per_hour=0.5, faults=True, servers=2).replayed() for _ in range(1 + (seed == 0))]
    assert runs[0] == runs[-1], "a seed says everything"
    assert runs[0].answered + runs[0].refused + runs[0].broken == len(asked)
    assert runs[0].answered > 0.9 * len(asked)
    assert runs[0].ready[-1][1] == 0


def test_an_endpoint_nobody_asks_goes_also_where_no_leader_lives_as_long_as_its_idle_time():
    class Restless(Traffic):
        def _tell(self):
            super()._tell()
            if self.at_ms - self.crashed_ms > 120_000:
                self.crashed_ms = self.at_ms
                self._crash(0)

        crashed_ms = 0

    asked = [Asked(n * 1000, 100, 100) for n in range(60)]
    report = Restless(Config(seed=1, nodes=6, hours=1, jobs_per_hour=0, faults=False, servers=1), SERVING, asked, None).replayed()
    assert report.answered == 60
    assert report.ready[-1][1] == 0


def test_a_drain_that_does_not_wait_is_found(monkeypatch):
    """The promise would be worth nothing if it could not be broken: a replica that is stopped while it still answers."""
    monkeypatch.setattr(Demand, "_empty", lambda *_: True)
    with pytest.raises(SimulationFailed, match="was stopped, cancelled, with a request under way"):
        replay([*waves(1, 1, 4.0)], model=Model(token_ms=200)).replayed()


def test_who_asks_where_no_replica_ever_comes_is_refused_in_time():
    report = replay([Asked(0, 10, 10)], serving=Serving(replicas_min=0, replicas_max=1, start_s=30)).replayed()
    assert (report.answered, report.refused, report.held) == (0, 1, 0)


def test_loads_are_read_in_azures_columns_and_what_is_wrong_is_said(tmp_path):
    file = tmp_path / "load.csv"
    file.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.9951690,396,109\n")
    assert read_load(file) == [Asked(0, 374, 44), Asked(1315, 396, 109)]
    file.write_text("at_s,ContextTokens,GeneratedTokens\n5,1,2\n3.5,3,4\n")
    assert read_load(file) == [Asked(0, 3, 4), Asked(1500, 1, 2)]
    head = "at_s,ContextTokens,GeneratedTokens\n"
    for wrong in (
        "",
        "at_s,ContextTokens\n1,2\n",
        f"{head}x,1,2\n",
        head,
        f"{head}1,-1,2\n",
        f"{head}1,1,-2\n",
        f"{head}inf,1,2\n0,1,2\n",
        f"{head}nan,1,2\n",
        f"{head}1,1\n",
    ):
        file.write_text(wrong)
        with pytest.raises(BadRequest):
            read_load(file)
    with pytest.raises(BadRequest, match="can't be read"):
        read_load(tmp_path / "none.csv")
