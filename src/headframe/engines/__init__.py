"""What runs allocations on machines: start, stop, observe, logs, one way each."""
