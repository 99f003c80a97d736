"""The API as a program meets it: idempotency, pages, streams, clear refusals of bad input."""

import gzip
import io
import tarfile
import threading

import httpx
import msgspec
import pytest

from headframe.client import ApiError
from headframe.model.people import Scope
from headframe.model.units import NANO_PER_USD
from support import wait_for

TINY = "name: {name}\nrun: {run}\nresources: {{gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}}"


def tiny(name, run="true"):
    return TINY.format(name=name, run=run)


@pytest.fixture(scope="module")
def tenant(shared):
    with shared.tenant("acme") as client:
        yield client


def raw(tenant, method, path, **options):
    return tenant._http.request(method, path, **options)


def test_the_same_idempotency_key_gets_the_stored_answer_and_one_workload(tenant):
    body = msgspec.json.encode({"file": tiny("once")})
    headers = {"Idempotency-Key": "k1", "Content-Type": "application/json"}
    first, again = (raw(tenant, "POST", "/v1/workloads", content=body, headers=headers) for _ in range(2))
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert len([item for item in tenant.workloads() if item.workload.name == "once"]) == 1


def test_jobs_without_a_name_that_come_together_are_called_differently(tenant):
    file = "run: 'true'\nresources: {gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}"
    made = [tenant.submit(file).workload for _ in range(5)]
    assert len({each.name for each in made}) == 5
    assert all(each.name == f"job-{each.id[-6:]}" for each in made)


def test_the_same_idempotency_key_with_another_body_is_refused(tenant):
    for name, status in (("a", 201), ("b", 422)):
        answer = raw(tenant, "POST", "/v1/workloads", json={"file": tiny(f"other-{name}")}, headers={"Idempotency-Key": "k2"})
        assert answer.status_code == status
    assert answer.json()["code"] == "idempotency_mismatch"


def test_many_at_once_under_one_key_make_one_workload(tenant):
    answers = []

    def send():
        answers.append(raw(tenant, "POST", "/v1/workloads", json={"file": tiny("racing")}, headers={"Idempotency-Key": "k3"}).status_code)

    threads = [threading.Thread(target=send) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) <= {201, 409}
    assert 201 in answers
    assert len([item for item in tenant.workloads() if item.workload.name == "racing"]) == 1


@pytest.mark.usefixtures("tenant")
def test_a_repeated_key_creation_does_not_show_the_secret_again(shared):
    with shared.operator() as operator:
        answers = [
            raw(operator, "POST", "/v1/keys", json={"name": "x", "scope": "read", "project": "acme"}, headers={"Idempotency-Key": "kk"}).json()
            for _ in range(2)
        ]
    assert answers[0]["secret"].startswith("hf_ro_")
    assert answers[1]["secret"] == ""
    assert answers[0]["key"] == answers[1]["key"]


def test_a_race_of_64_never_overspends(shared):
    with shared.tenant("poor", credit_usd=1) as poor:
        admitted, refused = [], []

        def send(n):
            try:
                admitted.append(poor.submit(tiny(f"race-{n}", "sleep 30").replace("cpu: 0.1", "cpu: 2")).workload)
            except ApiError as error:
                refused.append(error.problem.code)

        threads = [threading.Thread(target=send, args=(n,)) for n in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        project = poor.projects().items[0]
        assert project.credit_nano >= 0
        assert project.credit_nano + project.held_nano == NANO_PER_USD
        assert set(refused) == {"no_credit"}
        assert len(admitted) + len(refused) == 64
        for workload in admitted:
            poor.stop(workload.id)


def test_pages_follow_each_other_without_gaps(tenant):
    for n in range(7):
        tenant.submit(tiny(f"page-{n}"))
    whole = [item.workload.id for item in tenant.workloads(limit=500)]
    assert [item.workload.id for item in tenant.workloads(limit=3)] == whole


def test_a_log_is_followed_live_to_its_end(tenant):
    tenant.submit(tiny("talking", "for i in 1 2 3; do echo line $i; sleep 0.2; done; echo oops >&2; exit 3"))
    heard = list(tenant.follow("talking"))
    lines = [(line.stream, line.text) for line in heard if hasattr(line, "text")]
    assert lines == [("out", "line 1"), ("out", "line 2"), ("out", "line 3"), ("err", "oops")]
    assert heard[-1].workload.state == "failed"
    assert heard[-1].workload.exit_code == 3


def test_events_are_streamed_from_a_cursor(tenant):
    after = tenant.events(latest=True).next
    tenant.submit(tiny("seen"))
    stream = tenant.follow_events(after)
    texts = [next(stream).text for _ in range(3)]
    assert texts[0].startswith("seen: queued")
    assert any("granted" in text for text in texts)


def test_a_waiting_workload_says_which_rule_refused_it_with_numbers(shared, tenant):
    with shared.operator() as operator:
        cores = next(operator.nodes()).node.cpu_milli // 1000
    tenant.submit(tiny("hog", "sleep 60").replace("cpu: 0.1", f"cpu: {cores}"))
    tenant.submit(tiny("waiter").replace("cpu: 0.1", f"cpu: {cores}"))
    waits = wait_for(lambda: tenant.workload("waiter").waits)
    assert str(waits[0]).startswith(f"cpu: 1 node refused: needs {cores} cores, best has ")
    tenant.stop("waiter")
    assert tenant.workload("waiter").workload.state == "cancelled"
    tenant.stop("hog")
    wait_for(lambda: tenant.workload("hog").workload.state == "cancelled")


def test_what_can_never_run_is_refused_at_once(tenant):
    with pytest.raises(ApiError) as refused:
        tenant.submit(tiny("big").replace("gpu: 0", "gpu: H100:8"))
    assert refused.value.problem.code == "infeasible"
    assert "8 GPU (H100)" in refused.value.problem.detail
    with pytest.raises(ApiError, match="machines that are started as one"):
        tenant.submit(tiny("gang") + "\nnodes: 2")


def test_every_mistake_of_a_file_is_in_one_answer(tenant):
    with pytest.raises(ApiError) as refused:
        tenant.submit("type: jobb\nrun: x\nresorces: {gpu: 1}\ntier: spto\nnodes: many\n")
    mistakes = {(m.line, m.key): m for m in refused.value.problem.mistakes}
    assert set(mistakes) == {(1, "type"), (3, "resorces"), (4, "tier"), (5, "nodes")}
    assert mistakes[3, "resorces"].nearest == "resources"
    assert mistakes[4, "tier"].nearest == "spot"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", {400}), (b"[]", {400}), (b'{"file": 5}', {400}), (b'{"file": "run: [\\n"}', {422}), (b'{"file": "&a [*a, *a]"}', {422}),
        (b'{"file": "!!python/object/apply:os.system [id]"}', {422}), (b"\xff\xfe", {400}), (b'{"file": "\\ud800"}', {400, 422}),
        (b'{"file": "' + b"a" * 2_000_000 + b'"}', {413}), (b'{"file": "' + b"[" * 5000 + b'"}', {422}), (b'{"file": "run: \\"\\\\0\\""}', {422}),
        (b'{"file": "name: \\u202e\\nrun: x"}', {422}), (b'{"file": "run: x", "project": "nobody"}', {404}), (b'{"file": "run: x", "workdir": "../../etc"}', {404}),
    ],
)  # fmt: skip
def test_bad_input_gets_a_clear_refusal(tenant, body, status):
    answer = raw(tenant, "POST", "/v1/workloads", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in status, answer.text
    problem = answer.json()
    assert problem["code"] and problem["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_name_with_a_slash_is_told_to_be_none(tenant):
    with pytest.raises(ApiError, match="nothing is at /v1/workloads/../x") as refused:
        tenant.workload("../x")
    assert refused.value.problem.next_step.startswith("a name has no slash in it")


def archive(*members, **options):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as tar:
        for name, kind, more in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(more)
                tar.addfile(info, io.BytesIO(more))
            else:
                info.linkname = more
                tar.addfile(info)
    return out.getvalue()


BOMB = gzip.compress(archive(("zeros", tarfile.REGTYPE, b"\0" * 50_000_000)))
BAD_ARCHIVES = {
    "a path that leaves": archive(("../evil", tarfile.REGTYPE, b"x")),
    "a link that leaves": archive(("a", tarfile.SYMTYPE, "../../etc/passwd")),
    "an absolute link": archive(("a", tarfile.SYMTYPE, "/etc/passwd")),
    "a hard link that leaves": archive(("a", tarfile.LNKTYPE, "../../etc/passwd")),
    "a device": archive(("a", tarfile.CHRTYPE, "")),
    "no archive": b"hello" * 100,
    "a truncated archive": gzip.compress(archive(("a", tarfile.REGTYPE, b"x" * 10_000)))[:60],
    "too many files": archive(*((f"f{n}", tarfile.REGTYPE, b"") for n in range(20_001))),
}


@pytest.mark.parametrize("what", BAD_ARCHIVES)
def test_tricks_in_an_uploaded_workdir_are_refused(shared, tenant, what):
    answer = raw(tenant, "PUT", "/v1/workdirs", content=BAD_ARCHIVES[what])
    assert answer.status_code in {400, 413}, answer.text
    assert not list((shared.data / "workdirs").glob("upload-*"))


def test_an_archive_that_unpacks_to_too_much_is_refused(tenant, monkeypatch):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        info = tarfile.TarInfo("zeros")
        info.size = 1_100_000_000

        class Zeros:
            def read(self, size):
                return b"\0" * size

        tar.addfile(info, Zeros())
    assert len(out.getvalue()) < 10_000_000
    assert raw(tenant, "PUT", "/v1/workdirs", content=out.getvalue(), timeout=60).status_code == 413


def test_a_workdir_travels_and_gitignore_is_respected(tenant, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data.txt").write_text("forty-two")
    (tmp_path / "secret.env").write_text("x")
    (tmp_path / ".gitignore").write_text("*.env\n")
    tenant.submit(tiny("travelled", "cat sub/data.txt; ls -A"), workdir=tmp_path)
    lines = [line.text for line in tenant.follow("travelled") if hasattr(line, "text")]
    assert lines == ["forty-two.gitignore", "sub"]


def test_a_budget_per_hour_makes_work_wait_its_turn(shared):
    with shared.tenant("frugal") as frugal:
        frugal.set_budget(frugal.projects().items[0].id, NANO_PER_USD * 15 // 1000, 0)
        for n in range(2):
            frugal.submit(tiny(f"frugal-{n}", "sleep 30").replace("cpu: 0.1", "cpu: 1"))
        wait_for(lambda: frugal.workload("frugal-0").workload.state == "running")
        assert "budget" in str(wait_for(lambda: frugal.workload("frugal-1").waits)[0])
        for n in range(2):
            frugal.stop(f"frugal-{n}")


def test_unknown_paths_and_methods_are_problems_too(shared):
    assert httpx.get(shared.url + "/v1/nothing").json()["code"] == "not_found"
    assert httpx.patch(shared.url + "/v1/workloads").status_code == 405


def test_another_address_than_loopback_is_refused_without_tls(tmp_path):
    import subprocess
    import sys

    argv = [sys.executable, "-m", "headframe", "up", "--data", str(tmp_path / "d"), "--host", "0.0.0.0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 3
    assert "unencrypted" in done.stderr
    assert "--tls-self-signed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_self_signed_server_serves_tls_to_who_trusts_its_certificate(tmp_path):
    import os
    import subprocess
    import sys
    import time

    from headframe import Client
    from headframe.client import Unreachable
    from support import free_port

    port = free_port()
    argv = [sys.executable, "-m", "headframe", "up", "--data", str(tmp_path / "d"), "--port", str(port), "--tls-self-signed"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, "HEADFRAME_CONFIG": str(tmp_path / "c.json")})
    try:
        cert = tmp_path / "d" / "tls-cert.pem"
        wait_for(lambda: "serves" in (tmp_path / "log").read_text())
        with Client(f"https://127.0.0.1:{port}", verify=str(cert)) as cloud:
            assert cloud.health().status == "ok"
        with pytest.raises(Unreachable), Client(f"https://127.0.0.1:{port}", timeout_s=2) as cloud:
            cloud.health()
        time.sleep(0)
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_a_grids_key_tells_events_and_what_is_refused_or_anonymous_raises_the_alarm(shared):
    def refused():
        said = raw(operator, "GET", "/metrics").text
        return float(next(line for line in said.splitlines() if line.startswith("headframe_signals_refused_total")).split()[1])

    with shared.operator() as operator:
        grid = {"Authorization": f"Bearer {operator.create_key('grid', Scope.SIGNAL, '').secret}"}
        event = {
            "id": "ev-1", "objectType": "EVENT", "intervalPeriod": {"start": "0000-00-00", "duration": "PT10M"},
            "intervals": [{"id": 0, "payloads": [{"type": "SIMPLE", "values": [1]}]}],
        }  # fmt: skip
        taken = httpx.post(f"{shared.url}/v1/openadr?source=vtn", json={"objectType": "EVENT", "operation": "CREATE", "object": event}, headers=grid)
        assert taken.status_code == 201, taken.text
        assert [(row.source, row.value) for row in operator.signals().items if row.source == "vtn"] == [("vtn", 1)]
        gone = httpx.post(f"{shared.url}/v1/openadr?source=vtn", json={"objectType": "EVENT", "operation": "DELETE", "object": event}, headers=grid)
        assert gone.status_code == 201
        assert all(row.cancelled for row in operator.signals().items if row.source == "vtn")
        before = refused()
        assert httpx.post(f"{shared.url}/v1/openadr", json={"id": "x"}, headers=grid).status_code == 400
        assert httpx.post(f"{shared.url}/v1/openadr", json=event).status_code == 401
        assert httpx.get(f"{shared.url}/v1/signals", headers=grid).status_code == 403
        assert refused() == before + 2
        assert operator.feeds().items == ()
