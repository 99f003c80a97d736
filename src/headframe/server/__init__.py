"""The control-plane process: wiring, the tick, the API, the console's routes, leadership."""
