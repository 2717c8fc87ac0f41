"""The OpenAPI document is true: schemathesis sends requests that it allows and that it forbids.

No answer may be a 5xx, have an undeclared status or content type, or differ from its schema. The
number of examples per operation is small here; `make test-api` runs 200.
"""

import os
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from fake_engine import FakeEngine
from hypothesis import HealthCheck, Phase, settings
from live_server import MODEL, fake_app, serving
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from server.errors import _FIXED, failure_of

pytestmark = pytest.mark.slow

NUM_EXAMPLES = int(os.environ.get("ADADECODE_API_EXAMPLES", "8"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


schema = schemathesis.openapi.from_dict(fake_app(FakeEngine()).openapi())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of an application around a fake engine."""
    with serving(fake_app(FakeEngine(), access_log="none")) as url:
        yield url


@pytest.mark.parametrize(
    "path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"]
)
def test_every_error_that_an_exception_becomes_is_declared(path):
    declared = fake_app(FakeEngine()).openapi()["paths"][path]["post"]["responses"]
    raised = {failure_of(error("x")).status for error in _FIXED}

    assert {str(status) for status in raised} <= declared.keys()
    assert all(
        response["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorResponse")
        for status, response in declared.items()
        if status != "200"
    )


def test_requests_name_the_models_that_are_served():
    """Otherwise all generated requests would be refused for their model."""
    schemas = fake_app(FakeEngine()).openapi()["components"]["schemas"]

    assert schemas["ChatCompletionRequest"]["properties"]["model"]["enum"] == [MODEL]
    assert schemas["TokenizeRequest"]["properties"]["model"]["anyOf"][0]["enum"] == [MODEL]


def test_the_examples_work(url):
    document = fake_app(FakeEngine()).openapi()
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if content:
            example = content["application/json"]["example"]
            assert httpx.post(url + path, json=example).status_code == 200, path


@schema.parametrize()
@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    derandomize=NUM_EXAMPLES < 50,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(case, url):
    case.call_and_validate(base_url=url, checks=CHECKS)
