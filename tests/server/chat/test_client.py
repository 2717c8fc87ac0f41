import subprocess

import pytest
from fake_engine import FakeEngine
from live_server import fake_app, serving
from scripted_server import DONE, delta, final

from server.chat.client import ChatClient, ChatError, ModelCard
from server.settings import ServerSettings
from server.tls import tls_context

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(script):
    client = ChatClient(script.url, "secret")
    yield client
    client.close()


def test_chunks_carry_text_usage_and_metrics(script, client):
    script.answers = [[delta("He"), delta("llo"), final(2, early_exit={"x": 1}), DONE]]

    chunks = list(client.stream(MESSAGES, {"model": "m"}))

    assert "".join(chunk.text for chunk in chunks) == "Hello"
    assert chunks[-1].num_tokens == 2
    assert chunks[-1].metrics == {"early_exit": {"x": 1}}


def test_a_message_that_is_no_text_is_not_the_server_s_fault(client):
    with pytest.raises(ChatError, match="not valid UTF-8"):
        list(client.stream([{"role": "user", "content": "\udcff"}], {"model": "m"}))


def test_the_request_is_a_stream_with_usage_and_the_key(script, client):
    script.answers = [[DONE]]

    list(client.stream(MESSAGES, {"model": "m", "temperature": 0}))

    assert script.bodies[0] == {
        "model": "m",
        "temperature": 0,
        "messages": MESSAGES,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert script.keys == ["Bearer secret"]


def test_a_trace_is_parsed(script, client):
    draft = {"token_id": 8, "token": "no", "exit_layer": 3, "confidence": 0.6}
    trace = [
        {"token_id": 1, "token": "a", "exit_layer": 3, "confidence": 0.9, "rejected": []},
        {"token_id": 2, "token": "b", "exit_layer": 30, "confidence": None, "rejected": [draft]},
    ]
    script.answers = [[delta("ab", trace), DONE]]

    (chunk,) = client.stream(MESSAGES, {})

    assert [token.is_early for token in chunk.trace] == [True, False]
    assert [(d.text, d.exit_layer) for d in chunk.trace[1].rejected] == [("no", 3)]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([delta("He")], "closed the connection"),
        ([{"error": {"message": "the worker died"}}, DONE], "the worker died"),
        (["not json"], "does not answer like an OpenAI server"),
        ([{"error": "text"}], "does not answer like an OpenAI server"),
        (["[]"], "does not answer like an OpenAI server"),
    ],
)
def test_a_failing_stream_says_why(script, client, events, message):
    script.answers = [events]

    with pytest.raises(ChatError, match=message):
        list(client.stream(MESSAGES, {}))


def test_what_another_server_leaves_empty_is_no_text(script, client):
    script.answers = [[{"choices": [{"delta": None}], "error": None, "usage": None}, DONE]]

    assert [chunk.text for chunk in client.stream(MESSAGES, {})] == [""]


def test_a_refusal_shows_the_servers_message(script, client):
    script.error = (400, "messages: too long")

    with pytest.raises(ChatError, match="400: messages: too long"):
        list(client.stream(MESSAGES, {}))


def test_the_first_model_is_the_default(script, client):
    assert client.model_card() == ModelCard(name="scripted")


@pytest.mark.parametrize(
    ("card", "has_temperature"),
    [
        ({}, False),
        ({"sampling_defaults": {"temperature": 1.0}}, False),
        ({"sampling_defaults": {"temperature": 0.6}}, True),
    ],
)
@pytest.mark.parametrize("name", [None, "scripted"])
def test_a_models_own_temperature_is_known(script, client, name, card, has_temperature):
    script.card = card

    assert client.model_card(name).has_temperature is has_temperature


def test_a_model_that_is_named_need_not_be_listed(script, client):
    assert client.model_card("another") == ModelCard(name="another")
    script.unlisted = True
    assert client.model_card("another") == ModelCard(name="another")
    with pytest.raises(ChatError, match="404"):
        client.model_card()


def test_a_certificate_that_is_not_trusted_is_no_missing_server(tmp_path):
    both = tmp_path / "both.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -keyout {both}"
    made = subprocess.run(make.split(), check=True, capture_output=True).stdout
    both.write_bytes(both.read_bytes() + made)
    tls = tls_context(ServerSettings(ssl_certfile=both))
    with serving(fake_app(FakeEngine()), tls) as url, pytest.raises(ChatError) as error:
        ChatClient(url).model_card()

    assert "no secure connection" in str(error.value)
    assert "CERTIFICATE_VERIFY_FAILED" in str(error.value)


def test_no_server_is_said_plainly():
    with pytest.raises(ChatError, match="no server at"):
        ChatClient("http://127.0.0.1:1").model_card()
