"""Token ids are returned beside the text, on both endpoints."""

import json

import pytest
from fake_engine import FakeEngine
from live_server import MODEL

TEXT = "é!"
PATHS = ["/v1/completions", "/v1/chat/completions"]


@pytest.fixture
def engine():
    """A fake engine that says two characters in three tokens."""
    return FakeEngine(text=TEXT)


def ask(client, path, **fields):
    prompt = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
    response = client.post(path, json={"model": MODEL, **prompt, **fields})
    if not fields.get("stream"):
        return response.json()
    lines = response.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def prompt_ids(answer):
    return answer.get("prompt_token_ids") or answer["choices"][0].get("prompt_token_ids")


@pytest.mark.parametrize("path", PATHS)
def test_ids_of_prompt_and_output_are_the_same_whole_and_streamed(client, engine, path):
    whole = ask(client, path, return_token_ids=True, n=2)
    chunks = ask(client, path, return_token_ids=True, n=2, stream=True)

    assert prompt_ids(whole) == list(engine.requests[0].prompt_token_ids)
    for index in range(2):
        own = [chunk for chunk in chunks if chunk["choices"][0]["index"] == index]
        streamed = [i for chunk in own for i in chunk["choices"][0].get("token_ids", ())]
        assert streamed == whole["choices"][index]["token_ids"] == list(TEXT.encode())
        assert [prompt_ids(chunk) for chunk in own if prompt_ids(chunk)] == [prompt_ids(whole)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
def test_unasked_there_are_no_ids(client, path, stream):
    assert "token_ids" not in json.dumps(ask(client, path, stream=stream))


def test_log_probabilities_name_tokens_by_id(client):
    asked = {"return_tokens_as_token_ids": True}
    completion = ask(client, PATHS[0], logprobs=2, **asked)["choices"][0]["logprobs"]
    chat = ask(client, PATHS[1], logprobs=True, top_logprobs=2, **asked)

    names = [f"token_id:{byte}" for byte in TEXT.encode()]
    assert completion["tokens"] == names
    assert completion["top_logprobs"][2] == {"token_id:33": -0.5, "token_id:97": -1.0}
    tokens = chat["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in tokens] == names
    assert tokens[2]["top_logprobs"][1]["token"] == "token_id:97"
    assert tokens[2]["bytes"] == [33]
