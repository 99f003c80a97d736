"""The whole system under faults: every promise after every commit, then everything finishes; the same seed, the same history."""

import pytest

from headframe.simulate.world import Config, Simulation, SimulationFailed


@pytest.mark.parametrize("seed", range(24))
def test_every_promise_holds_under_faults_and_work_finishes_in_calm(seed):
    first = Simulation(Config(seed=seed, nodes=20, hours=24, jobs_per_hour=4)).run()
    again = Simulation(Config(seed=seed, nodes=20, hours=24, jobs_per_hour=4)).run()
    assert first == again
    assert first.jobs > 20


def test_a_broken_promise_is_caught_and_can_be_replayed(monkeypatch):
    """The checkers would be worth nothing if they could not fail: a start that is not idempotent must be found."""
    from headframe.engines import simulated

    real = simulated.Machines.start

    def forgetful(self, allocation, workload):
        real(self, allocation, workload)
        run = self.runs.get(allocation.id)
        if run is not None and len(self.runs) % 5 == 0:
            self.runs[f"{allocation.id}-twin"] = run

    monkeypatch.setattr(simulated.Machines, "start", forgetful)
    with pytest.raises(SimulationFailed, match="replay with `headframe simulate --seed 3`"):
        Simulation(Config(seed=3, nodes=10, hours=24)).run()


def test_without_faults_nothing_crashes_and_everything_ends():
    outcome = Simulation(Config(seed=5, nodes=10, hours=24, faults=False)).run()
    assert outcome.crashes == 0
