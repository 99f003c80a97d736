"""Cards fall ill in a simulated fleet: sick ones are taken in time, well ones are left alone, and a mass false alarm takes a tenth at most."""

from headframe.simulate.ward import AILMENTS, Ward
from headframe.simulate.world import Config


def test_sick_cards_are_taken_well_ones_stay_and_a_mass_alarm_takes_a_tenth():
    found = Ward(Config(seed=3, nodes=20, hours=10 * 24, jobs_per_hour=1.0, servers=1), factor=25.0).watched()
    assert len(found.rows) == len(AILMENTS)
    for name, sick, cases, taken, middle, late in found.rows:
        assert cases or sick, name
        if sick:
            assert taken == cases, name
            assert late <= 15 * 60, name
            assert middle <= 15 * 60
        else:
            assert taken == 0, name
    assert 0 < found.alarm_taken <= found.alarm_cards // 10
