import pytest
from fake_engine import FakeEngine
from fastapi.routing import iter_route_contexts
from live_server import MODEL, fake_app
from starlette.testclient import TestClient

from server.routes.ui import PAGE_PATHS

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
    routes = [route for route in iter_route_contexts(guarded.app.routes) if route.path]
    asked = {(method, route.path) for route in routes for method in route.methods or {"GET"}}
    asked |= {("GET", path) for path in ("/nowhere", "//v1/models", "/health/x", "/healthz")}
    asked |= {("GET", "/v1/%2e%2e/health"), ("GET", "/openapi.json"), ("GET", "/docs")}

    opened = {path for way, path in asked if guarded.request(way, path).status_code != 401}
    assert len(asked) > 10
    assert opened <= {"/health", "/ready", "/ping", *PAGE_PATHS}
    assert opened >= {"/health", "/ready"}


def test_a_proxys_prefix_opens_nothing_but_the_probes():
    with TestClient(fake_app(FakeEngine(), api_key=[KEY], root_path="/llm/")) as client:
        assert client.get("/llm/health").status_code == 200
        assert client.get("/health").status_code == 200
        for path in ("/llm/v1/models", "/v1/models", "/llmhealth", "/llm/llm/health"):
            assert client.get(path).status_code == 401
        document = client.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).json()
        assert document["servers"] == [{"url": "/llm"}]


def test_keys_of_a_file_open_as_well(tmp_path):
    (tmp_path / "keys").write_text("# ours\n\nsk-from-file\n  sk-second  \n")
    app = fake_app(FakeEngine(), api_key=[KEY], api_key_file=tmp_path / "keys")
    with TestClient(app) as client:
        for key, status in (("sk-from-file", 200), ("sk-second", 200), (KEY, 200), ("# ours", 401)):
            response = client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert response.status_code == status


def test_web_pages_of_other_origins_get_no_permission(client):
    response = client.get("/v1/models", headers={"Origin": "https://app.example"})

    assert not [name for name in response.headers if name.startswith("access-control")]
    asking = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    assert client.options("/v1/models", headers=asking).status_code == 405


def test_listed_origins_do_and_are_asked_for_a_key_only_after_their_preflight():
    app = fake_app(FakeEngine(), api_key=[KEY], allowed_origins='["https://app.example"]')
    with TestClient(app) as client:
        asking = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
        }
        for origin, status in (("https://app.example", 200), ("https://evil.example", 400)):
            preflight = client.options("/v1/completions", headers={"Origin": origin, **asking})
            assert preflight.status_code == status
        allowed = {"Origin": "https://app.example"}
        assert client.get("/v1/models", headers=allowed).status_code == 401
        response = client.get("/v1/models", headers={**allowed, "Authorization": f"Bearer {KEY}"})
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert response.headers["access-control-expose-headers"] == "X-Request-Id"
        assert "access-control-allow-credentials" not in response.headers


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
