"""Random requests over the OpenAPI document: no 5xx, no answer that is not documented."""

import os

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from headframe.model.people import Scope
from headframe.model.agent import AddBody
from support import Server, join

EXAMPLES = int(os.environ.get("HEADFRAME_FUZZ", "15"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("fuzz")).start()
    with server.tenant() as tenant, server.operator() as operator:
        tenant.submit("name: one\nrun: echo hello\nresources: {gpu: 0, cpu: 0.1, memory: 10MB}")
        key = operator.create_key("fuzz", Scope.OPERATOR).secret
    yield server, key
    server.kill()


def attacked(server, operation, key):
    """Examples of one operation under one key."""

    @settings(max_examples=4 * EXAMPLES)
    @given(case=operation.as_strategy())
    def attack(case):
        case.call_and_validate(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, checks=CHECKS, timeout=20)

    attack()


@pytest.mark.slow
def test_nothing_that_a_machine_says_makes_a_5xx_or_is_half_kept(target):
    server, _ = target
    with server.operator() as operator:
        agent, joined = join(server, operator, 3, gpus=2)
        token = operator.invite(AddBody()).token
        before = [(view.node, view.gpus) for view in operator.nodes()]
    schema = schemathesis.openapi.from_url(server.url + "/schema/openapi.json")
    keys = {"/v1/agent/join": token, "/v1/agent/report": joined.key, "/v1/agent/lines": joined.key}
    for path, key in keys.items():
        attacked(server, schema[path]["POST"], key)
    agent.close()
    with server.operator() as operator:
        joined_since = [(view.node, view.gpus) for view in operator.nodes() if view.node.id in {node.id for node, _ in before}]
        assert [[gpu.id for gpu in gpus] for _, gpus in joined_since] == [[gpu.id for gpu in gpus] for _, gpus in before]
    assert "this is a bug" not in server.log


@pytest.mark.slow
def test_no_request_makes_a_5xx_or_an_undocumented_answer(target):
    server, key = target
    schema = schemathesis.openapi.from_url(server.url + "/schema/openapi.json")
    headers = {"Authorization": f"Bearer {key}"}
    seen = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.endswith("/stream") or (operation.method, operation.path) == ("delete", "/v1/keys/{key}"):
            continue  # streams do not end; revoking would end the campaign
        seen += 1

        @settings(max_examples=EXAMPLES)
        @given(case=operation.as_strategy())
        def attack(case):
            case.call_and_validate(base_url=server.url, headers=headers, checks=CHECKS, timeout=20)

        attack()
    assert seen > 20
    assert "this is a bug" not in server.log
