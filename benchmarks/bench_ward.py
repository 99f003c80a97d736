"""Sick cards told from well ones: 1,000 machines of eight cards over 60 days, ailments at published rates, through the real watch, rules and
tick in virtual time. Detection is beside its limit: a card speaks each minute here (in service every 10 s), and lasting rules wait ten minutes.

    python benchmarks/bench_ward.py [machines] [days] [seed]
"""

import sys
import time

from headframe.simulate.ward import Ward
from headframe.simulate.world import Config


def main() -> None:
    machines, days, seed = (int(given) if given else usual for given, usual in zip([*sys.argv[1:], "", "", ""], (1000, 60, 1), strict=False))
    began = time.monotonic()
    ward = Ward(Config(seed=seed, nodes=machines, hours=days * 24, jobs_per_hour=6.0, servers=1))
    found = ward.watched()
    print(f"{found.cards:,} cards, {found.days:.0f} days, seed {seed}, in {time.monotonic() - began:.0f} s")
    print(f"{'ailment':48} {'cases':>6} {'taken':>6} {'p50 s':>7} {'p99 s':>7}")
    for name, sick, cases, taken, middle, late in found.rows:
        print(f"{'sick  ' if sick else 'well  '}{name:42} {cases:6} {taken:6} {middle:7.0f} {late:7.0f}")
    sick = [row for row in found.rows if row[1]]
    well = [row for row in found.rows if not row[1]]
    missed, false = sum(row[2] - row[3] for row in sick), sum(row[3] for row in well)
    print(
        f"sick cards missed: {missed} of {sum(row[2] for row in sick)}; well cards taken: {false} of {sum(row[2] for row in well)} lookalikes, "
        f"{false / (found.cards * found.days / 365.25):.4f} a card and year"
    )
    print(f"a false alarm of all {found.alarm_cards:,} cards took {found.alarm_taken}: {found.alarm_taken / found.alarm_cards:.1%} (cap 10 %)")
    print("work started on a card out of service: 0 (a checker ends the run on the first)")


if __name__ == "__main__":
    main()
