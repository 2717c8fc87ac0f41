"""Reasoning in POST /v1/chat/completions, and the number of its tokens."""

import json
from typing import Any

import pytest
from fake_engine import ByteTokenizer, FakeEngine
from live_server import MODEL, fake_app
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from starlette.testclient import TestClient

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "n": 2}


@pytest.fixture
def engine():
    """A fake engine of a reasoning model."""
    return FakeEngine(tokenizer=ByteTokenizer("{{ messages }}<think></think>"))


def stream(client: Any, **fields: object) -> list[ChatCompletionChunk]:
    lines = client.post("/v1/chat/completions", json=CHAT | {"stream": True} | fields).text
    data = [line.removeprefix("data: ") for line in lines.splitlines() if "data: {" in line]
    return [ChatCompletionChunk.model_validate(json.loads(event)) for event in data]


@pytest.mark.parametrize(
    ("text", "num_tokens"),
    [
        ("<think>é é</think> yes", len("<think>é é</think>".encode())),
        ("<think></think>yes", 15),
        (" <think>cut", 11),
        ("no thought", 0),
        ("<thin", 0),
    ],
)
def test_thoughts_are_counted_token_by_token(client, engine, text, num_tokens):
    engine.text = text
    whole = ChatCompletion.model_validate(client.post("/v1/chat/completions", json=CHAT).json())
    *_, last = stream(client, stream_options={"include_usage": True})

    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert whole.usage.completion_tokens_details.reasoning_tokens == 2 * num_tokens
    assert last.usage == whole.usage


def test_a_thought_has_the_names_of_both_apis(client, engine):
    engine.text = "<think>a</think>b"
    message = client.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]
    deltas = [c.choices[0].delta.model_extra or {} for c in stream(client, n=1)[:-1]]

    for name in ("reasoning", "reasoning_content"):
        assert message[name] == "".join(delta.get(name) or "" for delta in deltas) == "a"


def test_usage_on_every_chunk_counts_the_thought_so_far(client, engine):
    engine.text = "<think>a</think>b"
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(client, stream_options=options, n=1)[:-1]

    counts = [c.usage.completion_tokens_details.reasoning_tokens for c in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == len("<think>a</think>")


def test_thoughts_can_be_left_out_and_still_count(client, engine):
    engine.text = "<think>a</think>b"
    body = CHAT | {"include_reasoning": False}
    whole = client.post("/v1/chat/completions", json=body).json()
    deltas = [c.choices[0].delta for c in stream(client, include_reasoning=False, n=1)]

    assert set(whole["choices"][0]["message"]) == {"role", "content", "refusal"}
    assert "".join(delta.content or "" for delta in deltas) == "b"
    assert not any("reasoning" in (delta.model_extra or {}) for delta in deltas)
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2 * 16


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_a_thought_sent_back_goes_to_the_template(client, engine, name):
    turns = [{"role": "assistant", "content": "a", name: "Hm."}, {"role": "user", "content": "b"}]
    client.post("/v1/chat/completions", json=CHAT | {"messages": turns})

    assert [turn.get("reasoning_content") for turn in engine.tokenizer.turns] == ["Hm.", None]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/tokenize"])
@pytest.mark.parametrize(
    ("template", "effort", "variables"),
    [
        ("{{ reasoning_effort }}", "low", {"reasoning_effort": "low"}),
        ("{{ reasoning_effort }}", "max", {"reasoning_effort": "max"}),
        ("{{ reasoning_effort }}", "none", {"reasoning_effort": "none"}),
        ("{{ enable_thinking }}<think></think>", "none", {"enable_thinking": False}),
        ("{{ enable_thinking }}<think></think>", "high", None),
        ("<think></think>", "none", None),
        ("", "none", {}),
        ("", "low", None),
    ],
)
def test_an_effort_reaches_the_template_or_is_refused_by_name(path, template, effort, variables):
    engine = FakeEngine(tokenizer=ByteTokenizer("{{ messages }}" + template))
    body = {"model": MODEL, "messages": CHAT["messages"], "reasoning_effort": effort}
    if path == "/v1/responses":
        body = {"model": MODEL, "input": "hi", "reasoning": {"effort": effort}}
    with TestClient(fake_app(engine)) as client:
        response = client.post(path, json=body)

    if variables is None:
        name = "reasoning.effort" if path == "/v1/responses" else "reasoning_effort"
        assert (response.status_code, response.json()["error"]["param"]) == (400, name)
    else:
        assert response.status_code == 200
        assert engine.tokenizer.variables == variables
