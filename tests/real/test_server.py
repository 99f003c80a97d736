"""Starting and stopping the real server: what an operator can get wrong is said in a sentence, before anything is touched."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys

import pytest

from headframe import Client
from headframe.client import ApiError
from headframe.store.open import open_store
from headframe.model.api import NodeBody, RackBody, ReservationBody
from support import Server, free_port, wait_for


def up(tmp_path, *argv, **environment):
    command = [sys.executable, "-m", "headframe", "up", "--data", str(tmp_path / "other"), *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, env={**os.environ, **environment})
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_taken_port_is_said_before_anything_is_made(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = up(tmp_path, "--port", str(taken.getsockname()[1]))
    assert code == 3
    assert "already in use" in said
    assert not (tmp_path / "other" / "headframe.db").exists()


def test_two_servers_do_not_share_an_embedded_store(server):
    code, said = up(server.root, "--data", str(server.data), "--port", "1")
    assert code == 3
    assert "another Headframe already serves" in said


def test_a_database_that_does_not_answer_is_said(tmp_path):
    code, said = up(tmp_path, "--database", "postgresql+psycopg://x@127.0.0.1:1/x", "--port", str(Server(tmp_path).port))
    assert code == 3
    assert "can't be opened" in said


def test_a_newer_store_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "headframe.db"
    store = open_store(f"sqlite:///{path}")
    with store._engine.begin() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    store.close()
    code, said = up(tmp_path, "--port", str(Server(tmp_path).port))
    assert code == 3
    assert "newer than this Headframe" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_leaves_work_running_and_the_next_server_finds_it(tmp_path, number):
    server = Server(tmp_path).start()
    with server.tenant() as tenant:
        tenant.submit("name: long\nrun: sleep 2; echo survived\nresources: {gpu: 0, cpu: 0.1, memory: 10MB}")
        wait_for(lambda: tenant.workload("long").workload.state == "running")
        server.kill(number)
        assert "Traceback" not in server.log
        server.start()
        wait_for(lambda: tenant.workload("long").workload.state == "succeeded")
        assert [line.text for line in tenant.logs("long").lines] == ["survived"]
    server.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_end_takes_its_gateway_with_it_and_cuts_nobody_off(tmp_path, number):
    server = Server(tmp_path).start("--gateway-port", str(free_port()))
    wait_for(lambda: "gateway at" in server.log)
    pid = int((server.data / "gateway" / "pid").read_text())
    server.kill(number)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "Traceback" not in server.log
    assert "cancel" not in server.log.lower()


def test_a_connection_that_comes_about_while_the_server_ends_does_not_hold_it_up(tmp_path):
    """As one does that was accepted just before: here its handshake is finished only once nobody else can connect any more."""
    server = Server(tmp_path).start("--tls-self-signed", "--no-check-new")
    wait_for(lambda: "serves" in server.log)
    late = socket.create_connection(("127.0.0.1", server.port))
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: refused(server.port), every_s=0.005)
    context = ssl.create_default_context(cafile=str(server.data / "tls-cert.pem"))
    with contextlib.suppress(OSError), context.wrap_socket(late, server_hostname="127.0.0.1") as connection:
        connection.recv(1)
    server.process.wait(timeout=20)
    assert "cancel" not in server.log.lower()


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_following_a_log_goes_on_through_a_restart_of_the_server(server):
    with server.tenant() as tenant:
        tenant.submit("name: talk\nrun: for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.4; done\nresources: {gpu: 0, cpu: 0.1, memory: 10MB}")
        heard = []
        for said in tenant.follow("talk"):
            if hasattr(said, "text"):
                heard.append(said.text)
                if said.text == "3":
                    server.kill()
                    server.start()
    assert heard == list("12345678")


def test_the_operators_key_works_and_is_only_in_its_file(server):
    assert oct((server.root / "config.json").stat().st_mode & 0o777) == "0o600"
    with server.operator() as operator:
        assert operator.whoami().scope == "operator"


def test_interrupting_a_follower_detaches_and_says_how_to_come_back(server, tmp_path):
    with server.tenant() as tenant:
        tenant.submit("name: going-on\nrun: echo started; sleep 30\nresources: {gpu: 0, cpu: 0.1, memory: 10MB}")
        env = {**os.environ, "HEADFRAME_CONFIG": str(server.root / "config.json"), "PYTHONUNBUFFERED": "1"}
        follower = subprocess.Popen(
            [sys.executable, "-m", "headframe", "logs", "-f", "going-on"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        assert follower.stdout.readline() == "started\n"
        follower.send_signal(signal.SIGINT)
        _, said = follower.communicate(timeout=20)
        assert follower.returncode == 130
        assert "headframe logs -f going-on" in said
        assert "Traceback" not in said
        assert tenant.workload("going-on").workload.state == "running"
        tenant.stop("going-on")


UNHEARD = """
import os, signal, threading
from headframe.cli import main

forever, _ = os.pipe()
# a signal that another thread takes leaves the main one in its call, as one does that comes just before the call
threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGNUM)).start()
main.app = lambda: os.read(forever, 1)
main.main()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_that_comes_just_before_a_blocking_call_ends_it_all_the_same(number):
    ended = subprocess.run([sys.executable, "-c", UNHEARD.replace("SIGNUM", number)], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")


FORGOTTEN = """
import enum, os, signal
from headframe.client.decoded import decoded
from headframe.model.api import WorkloadView

signal.signal(signal.SIGINT, signal.default_int_handler)
told = enum.EnumMeta.__getattr__ if hasattr(enum.EnumMeta, "__getattr__") else None

def ctrl_c(cls, name):
    os.kill(os.getpid(), signal.SIGINT)
    if told:
        return told(cls, name)
    raise AttributeError(name)

enum.EnumMeta.__getattr__ = ctrl_c
try:
    decoded(b"{}", WorkloadView)
except KeyboardInterrupt:
    print("heard")
"""


def test_ctrl_c_is_heard_while_the_first_answer_is_read():
    ended = subprocess.run([sys.executable, "-c", FORGOTTEN], capture_output=True, text=True, timeout=20, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "heard\n", "")


def test_a_volume_outlives_the_work_that_mounts_it_and_is_its_projects_own(server):
    text = "name: keeps\nrun: echo again >> $HEADFRAME_VOLUME_DATA/x; wc -l < $HEADFRAME_VOLUME_DATA/x\nvolumes: ['data:/data']\n"
    text += "resources: {gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}"
    with server.tenant("keeper") as tenant, server.tenant("stranger") as stranger:
        for count in ("1", "2"):
            tenant.submit(text)
            assert [line.text.strip() for line in tenant.follow("keeps") if hasattr(line, "text")] == [count]
        assert [item.volume.name for item in tenant.volumes().items] == ["data"]
        assert stranger.volumes().items == ()
        with pytest.raises(ApiError, match="no volume"):
            stranger.remove_volume("data")
        tenant.remove_volume("data")
        tenant.submit(text)
        assert [line.text.strip() for line in tenant.follow("keeps") if hasattr(line, "text")] == ["1"]


def test_a_cache_is_kept_between_works_listed_and_removed_with_what_is_in_it(server):
    text = "name: warm\nrun: echo again >> $HEADFRAME_VOLUME_MODELS/x; wc -l < $HEADFRAME_VOLUME_MODELS/x\nvolumes: ['cache:models:/models']\n"
    text += "resources: {gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}"
    with server.tenant("cacher") as tenant:
        for count in ("1", "2"):
            tenant.submit(text)
            assert [line.text.strip() for line in tenant.follow("warm") if hasattr(line, "text")] == [count]
        (row,) = tenant.volumes().items
        assert row.volume.cache
        assert row.volume.used_ms > row.volume.created_ms
        tenant.remove_volume("models")
        tenant.submit(text)
        assert [line.text.strip() for line in tenant.follow("warm") if hasattr(line, "text")] == ["1"]


def test_an_operator_sets_up_racks_taints_and_maintenance_and_work_is_told_why_it_waits(server):
    text = "name: waits\nrun: 'true'\nresources: {gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}"
    with server.operator() as operator, server.tenant() as tenant:
        name = next(operator.nodes()).node.name
        assert operator.set_rack("B2", RackBody(power_limit_w=5000, cooling_limit_w=4000)).rack.limit_w == 4000
        operator.set_node(name, NodeBody(rack="B2", taints=("lab",), idle_w=120))
        assert {(item.rack.name, item.nodes, item.drawn_w) for item in operator.racks().items if item.nodes} == {("B2", 1, 120)}
        with pytest.raises(ApiError, match=r"taint: 1 node refused: .*add `tolerations: \[lab\]`"):
            tenant.submit(text)
        operator.set_node(name, NodeBody(taints=()))
        operator.reserve(ReservationBody(name="upkeep", on=(name,), length_s=3600))
        tenant.submit(text)
        assert "set aside as 'upkeep'" in str(tenant.workload("waits").workload.detail or tenant.workload("waits").waits[0])
        assert tenant.reservations().items == ()
        operator.cancel_reservation("upkeep")
        wait_for(lambda: tenant.workload("waits").workload.state == "succeeded")
        assert operator.defragmentation().moves == ()


def test_the_client_of_the_readme_is_the_client(server):
    from headframe.client.http import Client as Same

    assert Client is Same
