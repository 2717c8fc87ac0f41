"""Requests that leave sampling values out have the model's own, on every endpoint."""

import json

import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app
from starlette.testclient import TestClient

OWN = {"temperature": 0.6, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1}
PROMPTS = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"input": "a"},
}


@pytest.fixture
def client(engine: FakeEngine, tmp_path):
    """Return a client of a server whose operator gave all values in a file, and one beside it."""
    path = tmp_path / "sampling.json"
    path.write_text(json.dumps({**OWN, "temperature": 0.9, "do_sample": False}))
    app = fake_app(
        engine,
        generation_config=str(path),
        override_generation_config={"temperature": 0.6, "max_new_tokens": 5},
    )
    with TestClient(app) as client:
        yield client


def ask(client: TestClient, path: str, **fields: object):
    response = client.post(path, json={"model": MODEL, **PROMPTS[path], **fields})
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PROMPTS)
def test_every_endpoint_fills_them_in(client, engine, path, stream):
    ask(client, path, stream=stream)
    ask(client, path, stream=stream, **dict.fromkeys(OWN))

    for request in engine.requests:
        assert {name: getattr(request.sampling, name) for name in OWN} == OWN
        assert request.sampling.max_tokens == 5


@pytest.mark.parametrize("path", PROMPTS)
def test_what_a_request_says_wins(client, engine, path):
    longest = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    ask(client, path, temperature=0, top_k=-1, min_p=0, **{longest: 50})

    (request,) = engine.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.min_p) == (0, 0, 0)
    assert (sampling.top_p, sampling.max_tokens) == (0.9, 50)


def test_batches_and_choices_have_them_too(client, engine):
    ask(client, "/v1/completions", prompt=["a", "b"], n=2)

    assert [request.sampling.temperature for request in engine.requests] == [0.6] * 4


def test_a_response_repeats_the_values_in_effect(client):
    names = ("temperature", "top_p", "max_output_tokens")
    own = ask(client, "/v1/responses").json()
    said = ask(client, "/v1/responses", temperature=0, top_p=0.5, max_output_tokens=9).json()
    streamed = ask(client, "/v1/responses", stream=True).text.splitlines()
    first = next(json.loads(line.removeprefix("data: ")) for line in streamed if "data: " in line)

    assert [own[name] for name in names] == [0.6, 0.9, 5]
    assert [said[name] for name in names] == [0, 0.5, 9]
    assert [first["response"][name] for name in names] == [0.6, 0.9, 5]


def test_cards_and_server_info_show_them(client):
    shown = {**OWN, "max_new_tokens": 5}
    info = client.get("/server_info").json()

    assert client.get(f"/v1/models/{MODEL}").json()["sampling_defaults"] == shown
    assert info["model"]["sampling_defaults"] == shown
    assert info["settings"]["generation_config"] == "sampling.json"
    assert info["settings"]["override_generation_config"] == {
        "temperature": 0.6,
        "max_new_tokens": 5,
    }


def test_a_model_that_has_none_has_openais():
    with TestClient(fake_app(FakeEngine())) as client:
        card = client.get(f"/v1/models/{MODEL}").json()
        response = ask(client, "/v1/responses").json()

    assert card["sampling_defaults"] == {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_new_tokens": None,
    }
    assert (response["temperature"], response["max_output_tokens"]) == (1.0, None)
