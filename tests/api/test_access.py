"""Every route has a scope and keeps to it; tenants can't see or guess each other's things; keys behave as promised."""

import re
import sqlite3

import generate
import httpx
import pytest

from headframe import Client
from headframe.client import ApiError
from headframe.model.agent import AddBody
from headframe.model.people import ALLOWS, Scope
from headframe.server.context import PUBLIC
from support import join, wait_for

PUBLIC_ROUTES = {
    ("GET", "/v1/health"),
    ("GET", "/sign-in"),
    ("POST", "/console/sign-in"),
    ("GET", "/static/{name}"),
    ("GET", "/schema/openapi.json"),
    ("GET", "/schema"),
    ("GET", "/schema/{path}"),
}
TINY = "name: tiny\nrun: sleep 60\nresources: {gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}"


def routes():
    """(method, path, scope) of every route of the real application."""
    found = [(method, re.sub(r"\{(\w+)(:\w+)?\}", r"{\1}", path), handler.opt.get("scope")) for method, path, handler in generate.routes()]
    return sorted(found, key=str)


ROUTES = routes()
ASKED = [route for route in ROUTES if route[0] != "WS"]
"""Those of WebSockets are asked in tests/real/test_shells.py."""


@pytest.fixture(scope="module")
def world(shared):
    """Two tenants, one with a live workload, and a key of every scope."""
    mine, other = shared.tenant("mine"), shared.tenant("other")
    with shared.operator() as operator:
        project = next(row for row in operator.projects().items if row.name == "mine")
        keys = {scope: operator.create_key(f"k {scope}", scope, project.id).secret for scope in Scope if scope not in {Scope.NODE, Scope.JOIN}}
        keys[Scope.NODE] = join(shared, operator)[1].key
        keys[Scope.JOIN] = operator.invite(AddBody()).token
        keys["other"] = other._http.headers["Authorization"].removeprefix("Bearer ")
        live = mine.submit(TINY).workload
        served = mine.apply_endpoint("type: endpoint\nname: served\nrun: sleep 60\nresources: {gpu: 0, cpu: 0.1, memory: 10MB, disk: 1MB}").endpoint
        ids = {
            "workload": live.id,
            "project": project.id,
            "key": operator.keys().items[-1].id,
            "node": next(operator.nodes()).node.id,
            "rack": "rack 1",
            "site": "site-1",
            "gpu": "GPU-0",
            "digest": "0" * 64,
            "reservation": "none",
            "engine": "slurm",
            "subject": "site-1",
            "coin": "BTC",
            "asic": "none",
            "endpoint": served.id,
            "volume": "data",
            "month": "2026-11",
            "name": "style.css",
        }
    yield shared, keys, ids
    mine.stop(live.id)
    mine.stop_endpoint(served.id)


def call(server, method, path, ids, key=None):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    filled = re.sub(r"\{(\w+)\}", lambda match: ids[match[1]], path)
    body = None if method == "GET" else {}
    with httpx.stream(method, server.url + filled, headers=headers, json=body, timeout=10) as answer:
        return answer.status_code


def test_every_route_declares_a_scope_or_is_on_the_short_public_list():
    assert {(method, path) for method, path, scope in ROUTES if scope == PUBLIC} == PUBLIC_ROUTES
    assert all(scope == PUBLIC or isinstance(scope, Scope) for _, _, scope in ROUTES)
    assert len(ROUTES) > 35


@pytest.mark.parametrize(("method", "path", "scope"), [route for route in ASKED if route[2] != PUBLIC])
def test_a_stranger_is_refused(world, method, path, scope):
    server, _, ids = world
    assert call(server, method, path, ids) == 401


@pytest.mark.parametrize(("method", "path", "scope"), [route for route in ASKED if route[2] != PUBLIC])
def test_every_key_without_the_scope_is_refused(world, method, path, scope):
    server, keys, ids = world
    for holder in Scope:
        if scope not in ALLOWS[holder]:
            assert call(server, method, path, ids, keys[holder]) == 403, holder


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [route for route in ASKED if "{workload}" in route[1] or "{endpoint}" in route[1] or "{project}" in route[1] or "{key}" in route[1]],
)
def test_another_projects_key_finds_nothing(world, method, path, scope):
    server, keys, ids = world
    expected = {403} if path.startswith("/console") or scope is Scope.OPERATOR else {404, 400}
    assert call(server, method, path, ids, keys["other"]) in expected


def test_lists_show_only_ones_own(world):
    server, keys, ids = world
    with Client(server.url, keys["other"]) as other:
        assert [item.workload.id for item in other.workloads()] == []
        assert {row.name for row in other.projects().items} == {"other"}
        assert all(key.project_id == other.whoami().project_id for key in other.keys().items)
        assert all(event.project_id == other.whoami().project_id for event in other.events().items)
        with pytest.raises(ApiError) as refused:
            other.bill("mine")
        assert refused.value.problem.code == "not_found"


def test_a_key_can_not_make_one_with_more_scope(world):
    server, keys, _ = world
    for holder in (Scope.ADMIN, Scope.MEMBER, Scope.READ):
        with Client(server.url, keys[holder]) as cloud:
            for wanted in Scope:
                if wanted not in ALLOWS[holder]:
                    with pytest.raises(ApiError) as refused:
                        cloud.create_key("more", wanted)
                    assert refused.value.problem.status == 403


def test_a_revoked_key_is_refused_at_once(world):
    server, _, _ = world
    with server.operator() as operator:
        made = operator.create_key("short-lived", Scope.READ, "mine")
        with Client(server.url, made.secret) as cloud:
            assert cloud.whoami().name == "short-lived"
            operator.revoke_key(made.key.id)
            with pytest.raises(ApiError, match="revoked"):
                cloud.whoami()


def test_an_expired_key_is_refused(world):
    server, _, _ = world
    with server.operator() as operator:
        made = operator.create_key("a second", Scope.READ, "mine", expires_in_s=1)
        with Client(server.url, made.secret) as cloud:

            def expired():
                try:
                    cloud.whoami()
                except ApiError as refused:
                    return "expired" in refused.problem.detail
                return False

            wait_for(expired, limit_s=5)


@pytest.mark.parametrize(
    "change",
    [
        lambda k: k[:-1] + ("a" if k[-1] != "a" else "b"),
        lambda k: k.replace("hf_op", "hf_adm"),
        lambda k: k[:30],
        lambda _: "hf_op_" + "0" * 75,
        lambda _: "\u00e4",
    ],
)
def test_a_key_that_is_not_exactly_right_is_refused(world, change):
    server, keys, _ = world
    answer = httpx.get(server.url + "/v1/whoami", headers={"Authorization": b"Bearer " + change(keys[Scope.OPERATOR]).encode()})
    assert answer.status_code == 401


def test_the_store_holds_no_secret_and_the_log_neither(world):
    server, keys, _ = world
    copy = sqlite3.connect(server.data / "headframe.db")
    dump = "\n".join(copy.iterdump())
    for key in keys.values():
        secret = key.split("_")[3][:40]
        assert secret not in dump
        assert secret.encode().hex() not in dump.lower()
    read_key = keys[Scope.READ]
    assert read_key not in server.log
    assert oct((server.data / "pepper").stat().st_mode & 0o777) == "0o600"


def test_security_headers_are_on_every_answer(world):
    server, _, _ = world
    for path in ("/sign-in", "/v1/health", "/v1/nothing", "/static/style.css"):
        headers = httpx.get(server.url + path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


def test_a_session_cookie_is_guarded_and_forms_from_elsewhere_are_refused(world):
    server, keys, ids = world
    with httpx.Client(base_url=server.url, follow_redirects=False) as browser:
        signed = browser.post("/console/sign-in", data={"key": keys[Scope.ADMIN], "path": "//evil.example/"})
        assert signed.status_code == 303
        assert signed.headers["location"] == "/"
        assert "httponly" in signed.headers["set-cookie"].lower()
        assert "samesite=strict" in signed.headers["set-cookie"].lower()
        stop = f"/console/workloads/{ids['workload']}/stop"
        assert browser.post(stop, data={"csrf": "0" * 64}).status_code == 403
        token = re.search(r'name="csrf" value="(\w+)"', browser.get("/").text)[1]
        assert browser.post(stop, data={"csrf": token}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert browser.post("/v1/workloads", json={"file": TINY}).status_code == 401
        cookie = browser.cookies["headframe_session"]
        browser.cookies.set("headframe_session", cookie[:-1] + "0")
        assert browser.get("/v1/whoami").status_code in {200, 401}
