"""Reasoning, messages and function calls of POST /v1/responses, whole and streamed."""

import json
from dataclasses import replace

import pytest
from fake_engine import ByteTokenizer, FakeEngine
from live_server import MODEL
from openai.types.responses import Response
from openai.types.responses.response_stream_event import ResponseStreamEvent
from pydantic import TypeAdapter

EVENT = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}


@pytest.fixture
def engine():
    """A fake engine of a reasoning model, with room for tools at a token per byte."""
    engine = FakeEngine(tokenizer=ByteTokenizer("{{ messages }}<think></think>"))
    engine.info = replace(engine.info, max_model_len=4096)
    return engine


def respond(client, **fields):
    response = client.post("/v1/responses", json={"model": MODEL, "input": "hi", **fields})
    assert response.status_code == 200, response.text
    return response


def whole(client, **fields):
    answer = respond(client, **fields).json()
    Response.model_validate(answer)
    return answer


def events(client, **fields):
    """Return the stream's events, after checking them against the types of OpenAI's client."""
    lines = respond(client, stream=True, **fields).text.splitlines()
    parsed = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    for event in parsed:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in parsed] == list(range(len(parsed)))
    return parsed


def without_ids(output):
    return [
        {name: value for name, value in item.items() if name not in ("id", "call_id")}
        for item in output
    ]


def test_a_thought_a_message_and_calls_are_items_in_their_order(client, engine):
    engine.text = f"<think>Hm.</think>Let me see.\n{CALL}{CALL}"
    answer = whole(client, tools=[TOOL])

    thought, message, first, second = answer["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert thought["summary"] == []
    assert message["content"][0]["text"] == "Let me see."
    for call in (first, second):
        assert (call["name"], call["arguments"]) == ("weather", '{"city": "Oslo"}')
    assert first["call_id"] != second["call_id"]
    assert len({item["id"] for item in answer["output"]}) == 4
    assert {item["status"] for item in answer["output"]} == {answer["status"]} == {"completed"}
    details = answer["usage"]["output_tokens_details"]
    assert details == {"reasoning_tokens": len("<think>Hm.</think>")}
    assert (answer["tool_choice"], answer["tools"][0]["name"]) == ("auto", "weather")
    prompt = bytes(i for i in engine.requests[0].prompt_token_ids if i < 256)
    assert b'"name": "weather"' in prompt


def test_streamed_items_open_grow_and_close_one_after_the_other(client, engine):
    engine.text = f"<think>Hm.</think>Let me see.\n{CALL}"
    stream = events(client, tools=[TOOL])

    kinds = [event["type"].removeprefix("response.") for event in stream]
    steps = [kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before]
    part = ["content_part.done", "output_item.done"]
    assert steps == [
        *("created", "in_progress"),
        *("output_item.added", "content_part.added", "reasoning_text.delta"),
        *("reasoning_text.done", *part),
        *("output_item.added", "content_part.added", "output_text.delta"),
        *("output_text.done", *part),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    done = [event["item"] for event in stream if event["type"].endswith("output_item.done")]
    assert done == stream[-1]["response"]["output"]
    assert without_ids(done) == without_ids(whole(client, tools=[TOOL])["output"])
    for index, item in enumerate(done):
        mine = [event for event in stream if event.get("output_index") == index]
        assert {event.get("item_id", item["id"]) for event in mine} == {item["id"]}
        assert mine[0]["item"]["status"] == "in_progress"
        wholes = [event.get("text", event.get("arguments")) for event in mine]
        pieces = "".join(event.get("delta", "") for event in mine)
        assert [each for each in wholes if each is not None] == [pieces]
        assert pieces == (item["content"][0]["text"] if "content" in item else item["arguments"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "num_tokens", "statuses"),
    [
        ("<think>Hm, so</think>Yes.", 12, ["incomplete"]),
        ("<think>Hm.</think>Yes indeed.", 22, ["completed", "incomplete"]),
        ("Yes." + CALL, 50, ["completed", "incomplete"]),
        (CALL + CALL, len(CALL), ["completed"]),
    ],
)
def test_the_token_limit_cuts_the_item_that_is_open(
    client, engine, text, num_tokens, statuses, stream
):
    engine.text = text
    fields = {"tools": [TOOL], "max_output_tokens": num_tokens}
    answer = events(client, **fields)[-1]["response"] if stream else whole(client, **fields)

    assert answer["status"] == "incomplete"
    assert [item["status"] for item in answer["output"]] == statuses


@pytest.mark.parametrize("text", ["<think>Hm.</think>Lét me see.\n" + CALL + "Done.", CALL, "Yes."])
def test_log_probabilities_are_those_of_the_messages(client, engine, text):
    engine.text = text
    fields = {"tools": [TOOL], **LOGPROBS}
    output = whole(client, **fields)["output"]
    stream = events(client, **fields)

    messages = [item for item in output if item["type"] == "message"]
    for message in messages:
        (part,) = message["content"]
        spelled = bytes(b for token in part["logprobs"] for b in token["bytes"]).decode()
        assert spelled == part["text"]
    assert without_ids(stream[-1]["response"]["output"]) == without_ids(output)
    pieces = [token for event in stream for token in event.get("logprobs", []) if "delta" in event]
    assert pieces == [token for message in messages for token in message["content"][0]["logprobs"]]


@pytest.mark.parametrize("stream", [False, True])
def test_who_says_nothing_answers_with_an_empty_message(client, engine, stream):
    engine.text = ""
    answer = events(client)[-1]["response"] if stream else whole(client)

    (message,) = answer["output"]
    assert (message["type"], message["content"][0]["text"]) == ("message", "")


def test_what_was_asked_is_repeated(client, engine):
    engine.text, engine.num_cached_tokens = CALL, lambda _: 1
    choice = {"type": "function", "name": "weather"}
    answer = whole(client, tools=[TOOL], tool_choice=choice, **LOGPROBS)

    assert answer["tool_choice"] == choice
    assert answer["text"] == {"format": {"type": "text"}}
    assert answer["top_logprobs"] == 1
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] == 1
    assert whole(client, tools=[TOOL], tool_choice="none")["tool_choice"] == "none"


def test_the_model_is_told_what_a_tool_returns_but_not_how_it_may_be_called(client, engine):
    usual = {"async": False, "defer_loading": False, "allowed_callers": ["direct"]}
    whole(client, tools=[{**TOOL, **usual, "output_schema": {"type": "number"}}])

    told = json.loads(engine.tokenizer.turns[0]["content"].splitlines()[2])
    assert told["function"].keys() == {"name", "parameters", "output_schema"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("async", True), ("defer_loading", True), ("allowed_callers", ["programmatic"])],
)
def test_ways_to_call_a_tool_that_are_not_offered_are_refused_by_name(client, name, value):
    body = {"model": MODEL, "input": "hi", "tools": [{**TOOL, name: value}]}
    response = client.post("/v1/responses", json=body)

    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(f"tools[0].{name}")


@pytest.mark.parametrize("fields", [{}, {"tools": [TOOL], "tool_choice": "none"}])
def test_without_tools_a_call_is_text(client, engine, fields):
    engine.text = CALL
    (message,) = whole(client, **fields)["output"]

    assert message["content"][0]["text"] == CALL


def test_one_call_only_where_calls_are_not_parallel(client, engine):
    engine.text = CALL + CALL
    answer = whole(client, tools=[TOOL], parallel_tool_calls=False)

    assert [item["type"] for item in answer["output"]] == ["function_call"]
    assert answer["parallel_tool_calls"] is False


def test_what_was_answered_can_be_sent_back(client, engine):
    engine.text = f"<think>Hm.</think>Let me see.\n{CALL}"
    output = whole(client, tools=[TOOL])["output"]
    result = {"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "rain"}
    engine.text = "It rains."
    ask = {"role": "user", "content": "hi"}
    whole(client, tools=[TOOL], input=[ask, *output, result])

    _, _, assistant, tool = engine.tokenizer.turns  # the first is the description of the tools
    assert assistant["reasoning_content"] == "Hm."
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in assistant["content"]
    assert tool["content"] == "<tool_response>\nrain\n</tool_response>"


def test_a_failure_shows_the_items_there_were(client, engine):
    engine.text, engine.failure_after = f"<think>Hm.</think>Yes.\n{CALL}", 24
    engine.failure = RuntimeError("at /secret")
    stream = events(client, tools=[TOOL])

    assert [event["type"] for event in stream[-2:]] == ["error", "response.failed"]
    failed = stream[-1]["response"]["output"]
    assert [(item["type"], item["status"]) for item in failed] == [
        ("reasoning", "completed"),
        ("message", "incomplete"),
    ]
