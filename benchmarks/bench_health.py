"""What telemetry costs: decoding, keeping and judging readings on the server, beside what 5,000 machines of eight cards send every
10 s; and one round of the probe over eight cards, beside 1 % of a core. NVML is a stand-in here: a driver's own share is not in it, the
stand-in's (it reads a file for each answer) is.

    python benchmarks/bench_health.py
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support import NOW_MS, fake_nvml, fleet  # noqa: E402

from headframe.model.health import Report, Sample  # noqa: E402
from headframe.server.watch import Watch  # noqa: E402

NODES, CARDS, EVERY_S, ROUNDS = 500, 8, 10, 6


def main() -> None:
    world, watch = fleet(nodes=NODES, gpus_each=CARDS), Watch()
    bodies = [
        msgspec.json.encode(Report(samples=tuple(
            Sample(gpu_id=f"GPU-{n}-{k}", at_ms=NOW_MS, temperature_c=61, power_w=301.5, sm_mhz=1695, memory_mhz=9501, reasons=4, use=0.97,
                   memory_used_mib=20_000, fan=0.6, energy_mj=123_456_789, link_gen=4, link_width=16, replays=3, answer_ms=9)
            for k in range(CARDS)
        )))
        for n in range(NODES)
    ]  # fmt: skip
    decoder = msgspec.json.Decoder(Report)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    for round_ in range(ROUNDS):
        now_ms = NOW_MS + round_ * EVERY_S * 1000
        for body in bodies:
            watch.hear(decoder.decode(body), "node-0", now_ms)
        watch.findings(world, now_ms)
    rate = NODES * CARDS * ROUNDS / (time.process_time() - began)
    need = 5000 * CARDS / EVERY_S
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"server: {rate:,.0f} readings a second decoded, kept and judged on one core; 5,000 nodes of {CARDS} cards send {need:,.0f}: {rate / need:.1f} x"
    )
    print(f"server: {grown_mb * 1024 / (NODES * CARDS):.1f} kB for each card after a minute ({len(bodies[0])} bytes a report of {CARDS} cards)")
    probe()
    print(f"load:   {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def probe() -> None:
    """CPU time and memory of the child that reads eight cards, over some seconds of quick rounds."""
    with tempfile.TemporaryDirectory() as root:
        library, state = fake_nvml(Path(root)), Path(root) / "state"
        state.write_text(f"-1.count {CARDS}\n*.temp 61\n" + "".join(f"{n}.uuid GPU-{n}\n" for n in range(CARDS)))
        environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_STATE": str(state)}
        child = subprocess.Popen([sys.executable, "-m", "headframe.agent.watch", "0.1", "/dev/null"], stdout=subprocess.PIPE, env=environment)
        for _ in range(10):
            child.stdout.readline()
        seen, rounds = psutil.Process(child.pid), 50
        before = sum(seen.cpu_times()[:2])
        for _ in range(rounds):
            child.stdout.readline()
        each_s = (sum(seen.cpu_times()[:2]) - before) / rounds
        print(
            f"probe:  {each_s * 1000:.1f} ms of CPU a round of {CARDS} cards: every {EVERY_S} s {each_s / EVERY_S:.3%} of a core (1 % allowed); "
            f"{seen.memory_info().rss / 2**20:.0f} MiB (60 allowed)"
        )
        child.kill()


if __name__ == "__main__":
    main()
