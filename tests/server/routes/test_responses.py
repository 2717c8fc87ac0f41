import json

import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app
from starlette.testclient import TestClient

from engine.errors import EngineFailed, EngineOverloaded

CALL_OF_LONG_ID = {"type": "function_call", "call_id": "x" * 257, "name": "f", "arguments": "{}"}


def respond(client, **fields):
    return client.post("/v1/responses", json={"model": MODEL, "input": "hi", **fields})


def events(response):
    """Return the stream's events, after checking that the name of each is also its type."""
    parsed = []
    for event in response.text.strip().split("\n\n"):
        name, data = event.split("\n")
        parsed.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {parsed[-1]['type']}"
    return parsed


def test_a_whole_response(client, engine):
    answer = respond(client, instructions="Be brief.", metadata={"a": "b"}).json()

    assert answer["id"].startswith("resp_")
    assert (answer["object"], answer["status"], answer["store"]) == ("response", "completed", False)
    (message,) = answer["output"]
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert message["content"] == [
        {"type": "output_text", "text": "Hello world!", "annotations": [], "logprobs": []}
    ]
    assert answer["metadata"] == {"a": "b"}
    usage = answer["usage"]
    assert usage["output_tokens"] == 12
    assert usage["total_tokens"] == usage["input_tokens"] + 12
    assert answer["metrics"]["speculative_decoding"]["num_draft_tokens"] == 6
    prompt = bytes(i for i in engine.requests[0].prompt_token_ids if i < 256)
    assert prompt == b"system:Be brief.user:hi"


def test_a_stream_says_the_same_in_order(client):
    whole = respond(client).json()
    stream = events(respond(client, stream=True))

    kinds = [event["type"] for event in stream]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
    text = "".join(event.get("delta", "") for event in stream)
    assert text == whole["output"][0]["content"][0]["text"]
    last = stream[-1]["response"]
    assert last["output"][0]["content"] == whole["output"][0]["content"]
    assert last["usage"] == whole["usage"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_token_limit_makes_it_incomplete(client, stream):
    response = respond(client, max_output_tokens=5, stream=stream)
    answer = events(response)[-1]["response"] if stream else response.json()

    assert answer["status"] == answer["output"][0]["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}


def test_items_become_turns(client, engine):
    respond(
        client,
        input=[
            {"role": "developer", "content": "a"},
            {"role": "user", "content": [{"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "c", "annotations": []}],
            },
            {"role": "user", "content": "d"},
        ],
    )

    prompt = bytes(i for i in engine.requests[0].prompt_token_ids if i < 256)
    assert prompt == b"system:auser:bassistant:cuser:d"


def test_logprobs_of_the_text(client):
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = respond(client, **fields).json()["output"][0]["content"][0]["logprobs"]
    stream = events(respond(client, stream=True, **fields))
    pieces = [entry for event in stream[4:-4] for entry in event["logprobs"]]

    assert len(whole) == 12
    assert len(whole[0]["top_logprobs"]) == 2
    assert pieces == whole


def test_sampling_and_early_exit_reach_the_engine(client, engine):
    answer = respond(
        client,
        temperature=0.5,
        top_p=0.9,
        seed=3,
        top_k=5,
        stop=["w"],
        early_exit={"return_trace": True},
    ).json()

    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.9, 3)
    assert (sampling.top_k, sampling.stop) == (5, ("w",))
    assert len(answer["early_exit_trace"]) == answer["usage"]["output_tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"response_format": {"type": "text"}}, "response_format"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"type": "function", "name": "f"}] * 2}, "tools"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
        ({"input": []}, "input"),
        ({"input": "x" * 300}, "input"),
        ({"input": None}, "input"),
        ({"max_output_tokens": 10**6}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"suffix": "x"}, "suffix"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"early_exit": {"nonsense": 1}}, "early_exit.nonsense"),
        ({"input": [{"role": "user", "content": "a"}, CALL_OF_LONG_ID]}, "input[1].call_id"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ],
)
def test_refusals_name_the_field(client, engine, fields, param):
    response = respond(client, **fields)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert engine.requests == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input": [{"role": "user", "content": "a"}] * 4097}, "at most 4096 items"),
        ({"truncation": "auto"}, "truncate_prompt_tokens"),
        ({"service_tier": "flex"}, "served alike"),
        ({"store": True}, "nothing is stored"),
        ({"min_tokens": 9, "max_output_tokens": 5}, "min_tokens: should be at most 5"),
    ],
)
def test_a_refusal_gives_its_reason_in_this_apis_words(client, fields, words):
    message = respond(client, **fields).json()["error"]["message"]

    assert words in message
    assert "max_tokens" not in message


def test_what_asks_for_nothing_is_taken(client):
    neutral = {
        "store": False,
        "background": False,
        "truncation": "disabled",
        "service_tier": "auto",
        "previous_response_id": None,
        "include": [],
        "reasoning": {"effort": None},
        "text": {"format": {"type": "text"}},
        "tools": [],
        "unknown_field": 1,
    }
    assert respond(client, **neutral).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")],
)
def test_stored_responses_are_refused(client, method, path):
    response = client.request(method, f"/v1/responses/resp_1{path}")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "response_not_found"


def test_a_failure_within_the_stream():
    engine = FakeEngine(failure=EngineFailed("row failed at /secret"))
    with TestClient(fake_app(engine)) as client:
        stream = events(respond(client, stream=True))

    assert [event["type"] for event in stream[-2:]] == ["error", "response.failed"]
    assert stream[-2]["code"] == "engine_failed"
    failed = stream[-1]["response"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")
    assert failed["output"][0]["content"][0]["text"] == "Hel"
    assert "/secret" not in json.dumps(stream)


def test_a_refusal_before_the_stream_has_its_status():
    with TestClient(fake_app(FakeEngine(refusal=EngineOverloaded("full")))) as client:
        assert respond(client, stream=True).status_code == 503
