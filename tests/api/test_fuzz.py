"""Random requests over the OpenAPI document: no 5xx, no answer that is not documented."""

import os

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from headframe.model.people import Scope
from support import Server

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
