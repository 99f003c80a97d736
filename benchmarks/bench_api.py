"""API reads and writes per second and p99 with 10,000 workloads in the store, beside a bare SQLite commit with full sync."""

import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import httpx
import msgspec
from headframe.model.event import Event, Kind
from headframe.model.states import WorkloadState
from headframe.store.open import open_store
from support import Server, job

WORKLOADS, SECONDS, THREADS = 10_000, 5, 4


def main():
    with tempfile.TemporaryDirectory() as root:
        server = Server(Path(root)).start()
        with server.tenant() as tenant:
            project = tenant.projects().items[0].id
            key = tenant._http.headers["Authorization"]
        server.kill()
        fill(server, project)
        server.start()
        reads = load(server, key, lambda http, n: http.get("/v1/workloads", params={"limit": 20}))
        ones = load(server, key, lambda http, n: http.get(f"/v1/workloads/wl-{n % WORKLOADS}"))
        writes = load(server, key, lambda http, n: http.put(f"/v1/projects/{project}/budget", json={"hour_nano": n}))
        server.kill()
    bare = commits()
    print(
        f"API with {WORKLOADS:,} workloads, {THREADS} clients on the same cores: pages of 20 {show(reads)}; one workload {show(ones)}; writes {show(writes)}; "
        f"bare SQLite commits (full sync) {bare:.0f}/s; writes over bare {len(writes) / SECONDS / bare:.2f}"
    )


def fill(server, project):
    store = open_store(f"sqlite:///{server.data / 'headframe.db'}")
    version = store.version()
    for start in range(0, WORKLOADS, 1000):
        rows = tuple(
            msgspec.structs.replace(job(n), project_id=project, state=WorkloadState.SUCCEEDED, closed=True, held_nano=0)
            for n in range(start, start + 1000)
        )
        version += 1
        store.commit([Event(seq=version, at_ms=1, kind=Kind.WORKLOAD_ENDED, subject="fill", text="fill", rows=rows)], version - 1)
    store.close()


def load(server, key, call):
    took, stop = [], time.monotonic() + SECONDS

    def worker(offset):
        n = offset
        with httpx.Client(base_url=server.url, headers={"Authorization": key}, timeout=30) as http:
            while time.monotonic() < stop:
                began = time.perf_counter()
                answer = call(http, n)
                took.append(time.perf_counter() - began)
                assert answer.status_code == 200, answer.text
                n += THREADS

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(took)


def show(took):
    return f"{len(took) / SECONDS:.0f}/s (p50 {statistics.median(took) * 1000:.1f} ms, p99 {took[int(len(took) * 0.99)] * 1000:.1f} ms)"


def commits():
    with tempfile.TemporaryDirectory() as root:
        db = sqlite3.connect(Path(root) / "bare.db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE t (a)")
        count, stop = 0, time.monotonic() + 2
        while time.monotonic() < stop:
            db.execute("INSERT INTO t VALUES (1)")
            count += 1
        return count / 2


main()
