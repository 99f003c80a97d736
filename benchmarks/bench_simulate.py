"""Simulated cluster-hours per minute on one core, 50 nodes, with faults (goal 10,000)."""

import time

from headframe.simulate.world import Config, Simulation

hours, began = 0.0, time.perf_counter()
for seed in range(6):
    hours += Simulation(Config(seed=seed)).run().simulated_hours
rate = hours / (time.perf_counter() - began) * 60
print(f"simulation: {rate:,.0f} cluster-hours per minute for 50 nodes with faults; ratio to the goal of 10,000 {rate / 10_000:.2f}")
