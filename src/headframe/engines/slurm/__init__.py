"""Slurm as an engine: Headframe decides where and why, Slurm starts, isolates and accounts."""
