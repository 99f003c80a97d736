"""A full disk: writes are refused with a clear error, running work goes on, nothing is lost, and it resumes by itself."""

import pytest

from headframe.client import ApiError
from support import Server, wait_for


@pytest.mark.slow
def test_a_full_disk_stops_writes_not_work_and_heals_by_itself(small_disk, tmp_path):
    server = Server(tmp_path, data="small/data").start()
    try:
        with server.tenant() as tenant:
            tenant.submit(
                "name: steady\nrun: for i in $(seq 40); do echo $i; sleep 0.1; done\nresources: {gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}"
            )
            wait_for(lambda: tenant.workload("steady").workload.state == "running")
            ballast = small_disk / "ballast"
            fill(ballast)
            with pytest.raises(ApiError) as refused:
                for n in range(500):
                    tenant.submit(
                        f"name: more-{n}\nrun: 'true'\nenv: {{X: {'y' * 20_000}}}\nresources: {{gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}}"
                    )
            assert refused.value.problem.code == "disk_full"
            assert refused.value.problem.status == 507
            acknowledged = sorted(item.workload.name for item in tenant.workloads(limit=500))
            assert tenant.workload("steady").workload.state in {"running", "succeeded"}
            ballast.unlink()
            wait_for(lambda: tenant.workload("steady").workload.state == "succeeded", limit_s=60)
            assert sorted(item.workload.name for item in tenant.workloads(limit=500)) == acknowledged
            tenant.submit("name: after\nrun: 'true'\nresources: {gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}")
            wait_for(lambda: tenant.workload("after").workload.state == "succeeded")
    finally:
        server.kill()


def fill(path):
    with path.open("wb") as file:
        try:
            while True:
                file.write(b"\0" * 4096)
                file.flush()
        except OSError:
            return
