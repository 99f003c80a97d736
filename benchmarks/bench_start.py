"""From submit to running, through API and local engine, beside the bare cost of starting the same process."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support import Server, wait_for

N = 40


def main():
    with tempfile.TemporaryDirectory() as root:
        proof = Path(root) / "proof"
        run = f'{sys.executable} -S -c \'import time; open("{proof}", "a").write(str(time.time()))\''
        bare = []
        for _ in range(N):
            proof.write_text("")
            began = time.time()
            subprocess.run(["/bin/sh", "-c", run])
            bare.append(float(proof.read_text().split()[-1]) - began)
        server = Server(Path(root)).start()
        through = []
        with server.tenant() as tenant:
            for n in range(N):
                proof.write_text("")
                began = time.time()
                tenant.submit(f"name: b{n}\nrun: |\n  {run}\nresources: {{gpu: 0, cpu: 0.1, memory: 200MB, disk: 1MB}}")
                wait_for(lambda: proof.read_text().strip(), every_s=0.002)
                through.append(float(proof.read_text().split()[-1]) - began)
                wait_for(lambda n=n: tenant.workload(f"b{n}").workload.closed, every_s=0.01)
        server.kill()
    b, t = sorted(bare), sorted(through)
    added = statistics.median(t) - statistics.median(b)
    print(
        f"submit to running: p50 {statistics.median(t) * 1000:.1f} ms, p95 {t[int(N * 0.95)] * 1000:.1f} ms; the bare process {statistics.median(b) * 1000:.1f} ms; "
        f"added {added * 1000:.1f} ms (goal < 50 ms): ratio to the goal {added / 0.050:.2f}"
    )


main()
