"""What runs on each node; for now the probe that says what a machine has."""
