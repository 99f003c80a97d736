"""The same tick over a virtual clock, the in-memory store and simulated machines, under seeded faults, with checkers apart."""
