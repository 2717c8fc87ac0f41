import math

import pytest
from live_server import MODEL


def ask(client, **fields):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
    return client.post("/v1/chat/completions", json=body)


def test_a_whole_answer(client):
    response = ask(client)
    answer = response.json()

    assert response.headers["content-type"] == "application/json"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello world!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"]["completion_tokens"] == 12


def test_who_says_nothing_answers_with_an_empty_text(client, engine):
    engine.text = ""

    assert ask(client).json()["choices"][0]["message"]["content"] == ""


def test_messages_become_turns_of_the_template(client, engine):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask(
        client,
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": parts},
        ],
    )

    prompt = engine.requests[0].prompt_token_ids
    assert bytes(token_id for token_id in prompt if token_id < 256) == b"system:be briefuser:ab"


def test_logprobs(client):
    entry = ask(client, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"][
        0
    ]

    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("H", -0.5, [72])
    assert [top["token"] for top in entry["top_logprobs"]] == ["H", "a"]


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
def test_a_token_that_cannot_be_has_a_log_probability_that_json_has(client, engine, fields):
    engine.logprob = lambda _: -math.inf
    answer = ask(client, logprobs=True, top_logprobs=1, **fields).text

    assert '"logprob":-9999.0' in answer
    assert "Infinity" not in answer
    assert '"logprob":null' not in answer


def test_logprobs_without_alternatives(client):
    entry = ask(client, logprobs=True).json()["choices"][0]["logprobs"]["content"][0]

    assert entry["top_logprobs"] == []


def test_several_choices(client):
    answer = ask(client, n=3).json()

    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 36
    assert answer["usage"]["prompt_tokens"] == 9


@pytest.mark.parametrize("name", ["audio", "function_call"])
def test_what_chats_no_longer_have_is_refused(client, name):
    message = {"role": "assistant", "content": "", name: [{"id": "1"}]}
    error = ask(client, messages=[message]).json()["error"]

    assert (error["code"], error["param"]) == ("unsupported_parameter", f"messages[0].{name}")


def test_an_unknown_model(client):
    response = ask(client, model="other")

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        404,
        "model_not_found",
        "model",
    )
    assert "GET /v1/models lists" in error["message"]
