import json
import re

import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app
from starlette.testclient import TestClient

from engine.errors import EngineFailed, ModelLoadError


def test_a_served_model_is_alive_and_ready(client):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}


def test_a_dead_engine_is_reported_by_both(client, engine):
    client.get("/health")
    engine.fatal_error = EngineFailed("no worker")

    assert client.get("/health").status_code == 503
    assert client.get("/ready").status_code == 503
    response = client.post("/v1/completions", json={"model": MODEL, "prompt": "a"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_failed")


def test_while_a_worker_is_replaced_the_server_is_alive_and_takes_requests(client, engine):
    client.get("/health")
    engine.is_recovering = True

    assert client.get("/health").json() == {"status": "ok"}
    response = client.get("/ready")
    assert (response.status_code, response.json()) == (503, {"status": "recovering"})
    assert client.post("/v1/completions", json={"model": MODEL, "prompt": "a"}).status_code == 200


def test_a_model_that_cannot_be_loaded_is_reported():
    with TestClient(fake_app(FakeEngine(start_error=ModelLoadError("no weights")))) as client:
        assert client.get("/ready").json() == {"status": "failed"}
        assert client.get("/health").status_code == 503


def test_the_version(client):
    assert client.get("/version").json()["version"]


def test_models(client):
    (card,) = client.get("/v1/models").json()["data"]

    assert (card["id"], card["object"], card["max_model_len"]) == (MODEL, "model", 256)
    assert client.get(f"/v1/models/{MODEL}").json() == card
    assert client.get("/v1/models/a/b").status_code == 404


def test_metrics_have_vllms_names(client):
    client.post("/v1/completions", json={"model": MODEL, "prompt": "a"})
    text = client.get("/metrics").text

    labels = f'{{engine="0",model_name="{MODEL}"}}'
    for line in (
        f"vllm:num_requests_running{labels} 0.0",
        f"vllm:kv_cache_usage_perc{labels} 0.25",
        f"vllm:generation_tokens_total{labels} 12.0",
        f"vllm:spec_decode_num_drafts_total{labels} 4.0",
        f"vllm:spec_decode_num_draft_tokens_total{labels} 6.0",
        f"vllm:spec_decode_num_accepted_tokens_total{labels} 5.0",
        f"vllm:time_to_first_token_seconds_count{labels} 1.0",
        f"vllm:inter_token_latency_seconds_count{labels} 11.0",
        f"vllm:e2e_request_latency_seconds_count{labels} 1.0",
        f"adadecode:is_drafting{labels} 1.0",
    ):
        assert line in text
    for label in ('position="1"', 'layer="2"', 'finished_reason="stop"'):
        assert label in text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
    ],
)
def test_wrong_routes_answer_in_the_envelope(client, method, path, status, code):
    response = client.request(method, path)

    assert response.status_code == status
    assert response.json()["error"]["code"] == code


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/completions", "POST"),
        ("DELETE", "/health", "GET, HEAD"),
        ("DELETE", "/ping", "GET, HEAD, POST"),
        ("PUT", "/v1/responses/resp_1", "DELETE, GET, HEAD"),
        ("POST", "/ui/app.js", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(client, method, path, allowed):
    response = client.request(method, path)

    assert (response.status_code, response.headers["Allow"]) == (405, allowed)


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/ping", "/metrics", "/v1/models", f"/v1/models/{MODEL}", "/load"]
)
def test_head_is_answered_where_get_is(client, path):
    head, get = client.head(path), client.get(path)

    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert not any("head" in methods for methods in client.app.openapi()["paths"].values())


def test_a_trailing_slash_is_no_empty_model_id(client):
    assert client.get("/v1/models/").json() == client.get("/v1/models").json()
    assert client.get("/health/", follow_redirects=False).status_code == 307


def test_the_api_is_described(client):
    document = client.get("/openapi.json").json()

    operation = document["paths"]["/v1/chat/completions"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    event = operation["responses"]["200"]["content"]["text/event-stream"]["schema"]
    assert _references(body) == {"ChatCompletionRequest"}
    assert _references(event) == {"ChatCompletionChunk", "ErrorResponse"}
    for page in ("/docs", "/redoc"):  # FastAPI's own pages would load scripts from other hosts
        assert client.get(page).status_code == 404


def test_every_reference_of_the_description_resolves(client):
    document = client.get("/openapi.json").json()

    assert _references(document) <= set(document["components"]["schemas"])


def test_every_operation_declares_its_errors(client):
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for operation in methods.values():
            responses = operation["responses"]
            assert {"500", "503"} <= set(responses)
            assert ("401" in responses) != (path in ("/health", "/ready", "/ping"))
            assert "422" not in responses, "validation errors are 400 here"


def test_with_keys_the_description_says_what_needs_one():
    document = fake_app(FakeEngine(), api_key=["sk"]).openapi()
    (name,) = document["components"]["securitySchemes"]

    assert document["security"] == [{name: []}]
    assert {
        path
        for path, methods in document["paths"].items()
        if any("security" in operation for operation in methods.values())
    } == {"/health", "/ready", "/ping"}
    assert "security" not in fake_app(FakeEngine()).openapi()


def _references(schema):
    """Yield the names of the types that a schema refers to."""
    return set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema)))
