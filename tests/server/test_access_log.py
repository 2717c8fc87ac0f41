import json
import logging

import httpx
import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app, serving
from starlette.testclient import TestClient

from engine.errors import RequestError

SECRET = "a-secret-prompt"
BODY = {"model": MODEL, "prompt": SECRET, "max_tokens": 5}


def lines(caplog) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "server.access_log"]


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="server.access_log")
    return caplog


def ask(engine: FakeEngine, style: str, *requests: tuple[str, str, dict]) -> None:
    with TestClient(fake_app(engine, access_log=style), raise_server_exceptions=False) as client:
        for method, path, body in requests:
            client.request(method, path, json=body, headers={"X-Request-Id": "id-1"})


@pytest.mark.parametrize("stream", [False, True])
def test_json_lines_have_id_status_duration_and_token_counts(log, stream):
    ask(FakeEngine(), "json", ("POST", "/v1/completions", BODY | {"stream": stream, "n": 2}))

    (line,) = lines(log)
    entry = json.loads(line)
    said = (entry["request_id"], entry["method"], entry["path"], entry["status"])
    assert said == ("id-1", "POST", "/v1/completions", 200)
    assert (entry["prompt_tokens"], entry["completion_tokens"]) == (len(SECRET), 10)
    assert entry["finish_reasons"] == ["length", "length"]
    assert 0 < entry["time_to_first_token_ms"] <= entry["duration_ms"]
    assert SECRET not in line


def test_text_lines_are_for_people(log):
    ask(FakeEngine(), "text", ("POST", "/v1/completions", BODY), ("GET", "/v1/models", {}))

    completion, models = lines(log)
    assert "POST '/v1/completions' 200" in completion
    assert "15 prompt and 5 output tokens (length), request id-1" in completion
    assert "GET '/v1/models' 200" in models
    assert "tokens" not in models


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_path_cannot_make_a_second_line(log, style):
    ask(FakeEngine(), style, ("GET", "/a%0Ab%22%1B[31m%E2%98%83%E2%80%A8?prompt=hidden", {}))

    (line,) = lines(log)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert line.isprintable()
    assert "hidden" not in line


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_and_scrapes_are_not_logged(log, path):
    ask(FakeEngine(), "json", ("GET", path, {}))

    assert lines(log) == []


def test_probes_that_a_proxy_passes_on_with_its_prefix_are_not_logged_either(log):
    with TestClient(fake_app(FakeEngine(), access_log="json", root_path="/api")) as client:
        assert client.get("/api/health").status_code == 200
        assert client.get("/api/version").status_code == 200

    assert [json.loads(line)["path"] for line in lines(log)] == ["/api/version"]


@pytest.mark.parametrize("fields", [{"n": 3}, {"n": 1, "best_of": 3}])
def test_each_prompt_is_counted_once_and_its_cached_tokens_as_its_first_choice_found_them(
    log, fields
):
    engine = FakeEngine()
    engine.num_cached_tokens = lambda request: 2 if request.request_id.endswith(("-0", "-3")) else 9
    ask(engine, "json", ("POST", "/v1/completions", BODY | fields | {"prompt": ["abc", "de"]}))

    entry = json.loads(lines(log)[0])
    assert (entry["prompt_tokens"], entry["cached_tokens"]) == (5, 4)
    assert entry["completion_tokens"] == 30


def test_none_is_none(log):
    ask(FakeEngine(), "none", ("POST", "/v1/completions", BODY))

    assert lines(log) == []


@pytest.mark.parametrize(
    ("engine", "status"),
    [
        (FakeEngine(refusal=RequestError("no")), 400),
        (FakeEngine(failure=RuntimeError("broken")), 500),
    ],
)
def test_failures_are_logged_with_their_status(log, engine, status):
    ask(engine, "json", ("POST", "/v1/completions", BODY))

    entry = json.loads(lines(log)[0])
    assert (entry["status"], entry["finish_reasons"]) == (status, ["error"])


def test_who_leaves_early_is_logged_as_aborted(log):
    body = BODY | {"max_tokens": 200, "stream": True}
    with (
        serving(fake_app(FakeEngine("x" * 200, token_delay_s=0.02), access_log="json")) as url,
        httpx.stream("POST", f"{url}/v1/completions", json=body) as response,
    ):
        next(response.iter_lines())

    entry = json.loads(lines(log)[0])
    assert entry["status"] == 200
    assert entry["finish_reasons"] == ["abort"]
    assert entry["completion_tokens"] < 200
