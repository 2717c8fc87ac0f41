import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app
from starlette.testclient import TestClient

KEY = "sk-Right-Key"


@pytest.fixture
def guarded():
    with TestClient(fake_app(FakeEngine(), api_key=["sk-other", KEY])) as client:
        yield client


@pytest.mark.parametrize("key", [KEY, "sk-other"])
def test_each_key_opens(guarded, key):
    response = guarded.get("/v1/models", headers={"Authorization": f"Bearer {key}"})

    assert response.status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {KEY.lower()}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Basic {KEY}",
        KEY,
        b"Bearer \xff\xfe",
    ],
)
def test_anything_else_does_not(guarded, authorization):
    headers = {} if authorization is None else {"Authorization": authorization}
    response = guarded.get("/v1/models", headers=headers)

    error = response.json()["error"]
    assert response.status_code == 401
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.headers["X-Request-Id"]


def test_every_route_but_the_probes_is_guarded(guarded):
    paths = {*guarded.app.openapi()["paths"], "/docs", "/openapi.json", "/redoc"}
    paths |= {"/nowhere", "//v1/models", "/health/x", "/v1/%2e%2e/health"}

    open_paths = {path for path in paths if guarded.get(path).status_code != 401}
    assert open_paths == {"/health", "/ready"}


@pytest.mark.parametrize("host", ["a/health?", "localhost/health", "x"])
def test_the_host_header_cannot_open_a_route(guarded, host):
    assert guarded.get("/v1/models", headers={"Host": host}).status_code in (400, 401)


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        ("req-1.2:3_x", "req-1.2:3_x"),
        ("a b\tc", "abc"),
        ("x" * 5000, "x" * 128),
        ("%0D%0Aevil", "0D0Aevil"),
        ("é☃".encode(), None),
        ("", None),
    ],
)
def test_request_ids_are_echoed_when_safe(client, sent, echoed):
    request_id = client.get("/health", headers={"X-Request-Id": sent}).headers["X-Request-Id"]

    assert request_id == echoed if echoed else len(request_id) == 32


def test_the_same_request_id_twice_is_two_requests(client, engine):
    for _ in range(2):
        client.post(
            "/v1/completions",
            json={"model": MODEL, "prompt": "a"},
            headers={"X-Request-Id": "same"},
        )

    assert len({request.request_id for request in engine.requests}) == 2


def test_what_nobody_expected_is_a_plain_500(client, engine):
    engine.refusal = RuntimeError("/secret/path")
    response = client.post("/v1/completions", json={"model": MODEL, "prompt": "a"})

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert response.headers["X-Request-Id"]
