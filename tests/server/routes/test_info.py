import httpx
import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app, serving
from starlette.testclient import TestClient

from engine.errors import EngineFailed

KEY = "sk-secret"


def test_load_counts_what_runs(engine):
    engine.token_delay_s = 0.3
    body = {"model": MODEL, "prompt": ["a", "b"], "stream": True}
    with serving(fake_app(engine)) as url, httpx.Client(base_url=url) as client:
        assert client.get("/load").json() == {"server_load": 0}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()  # kept, because a stream ends with its iterator
            next(lines)
            assert client.get("/load").json() == {"server_load": 2}


def test_server_info_shows_settings_and_the_model(client):
    info = client.get("/server_info").json()

    assert (info["state"], info["model_names"]) == ("ready", [MODEL])
    assert info["settings"]["max_num_seqs"] == 64
    assert (info["model"]["max_model_len"], info["model"]["exit_layers"]) == (256, [2])


def test_server_info_has_no_secret_and_no_directory(tmp_path):
    heads = tmp_path / "someone" / "heads"
    heads.mkdir(parents=True)
    (heads / "heads.json").touch()
    settings = {"api_key": KEY, "heads": str(heads)}
    with TestClient(fake_app(FakeEngine(), **settings)) as client:
        response = client.get("/server_info", headers={"Authorization": f"Bearer {KEY}"})

    assert KEY not in response.text
    assert "someone" not in response.text
    assert response.json()["settings"]["heads"] == "heads"
    assert response.json()["settings"]["api_key"] == ["**********"]


@pytest.mark.parametrize(("path", "is_open"), [("/ping", True), ("/load", False)])
def test_only_probes_need_no_key(path, is_open):
    with TestClient(fake_app(FakeEngine(), api_key=KEY)) as client:
        assert client.get(path).status_code == (200 if is_open else 401)
        assert client.get("/server_info").status_code == 401


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_ping_follows_health(client, engine, method):
    assert client.request(method, "/ping").json() == {"status": "ok"}
    engine.fatal_error = EngineFailed("no worker")
    assert client.request(method, "/ping").status_code == 503


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/v1/rerank", "/v1/audio/speech", "/score", "/chat/completions"]
)
def test_what_other_servers_have_is_a_clear_404(client, path):
    response = client.post(path, json={})

    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert "no such endpoint" in message
    assert message.endswith("such as /v1/chat/completions.")
