"""Tool calls of POST /v1/chat/completions."""

import json
from dataclasses import replace

import pytest
from fake_engine import FakeEngine
from live_server import MODEL
from prometheus_client.parser import text_string_to_metric_families


def ask(client, **fields):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
    return client.post("/v1/chat/completions", json=body)


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
NO_SUCH = {"type": "function", "function": {"name": "nope"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.fixture
def engine():
    """A fake engine with room for a description of tools, at a token per byte."""
    engine = FakeEngine()
    return FakeEngine(info=replace(engine.info, max_model_len=4096))


def test_a_tool_call(client, engine):
    engine.text = "Let me see.\n" + CALL
    (choice,) = ask(client, tools=[WEATHER]).json()["choices"]

    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me see."
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert b'"name": "weather"' in bytes(
        token_id for token_id in engine.requests[0].prompt_token_ids if token_id < 256
    )


def test_a_message_of_calls_alone_has_no_content(client, engine):
    engine.text = CALL + CALL
    message = ask(client, tools=[WEATHER], parallel_tool_calls=False).json()["choices"][0][
        "message"
    ]

    assert message["content"] is None
    assert len(message["tool_calls"]) == 1


@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_tools_a_call_is_text(client, engine, fields):
    engine.text = CALL
    (choice,) = ask(client, **fields).json()["choices"]

    assert choice["message"] == {"role": "assistant", "content": CALL, "refusal": None}
    assert choice["finish_reason"] == "stop"


def test_a_streamed_tool_call_is_what_the_whole_one_is(client, engine):
    engine.text = "Yes " + CALL
    lines = ask(client, tools=[WEATHER], stream=True, n=2).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    for index in range(2):
        choices = [e["choices"][0] for e in events if e["choices"][0]["index"] == index]
        calls = [call for c in choices for call in c["delta"].get("tool_calls", [])]
        assert "".join(c["delta"].get("content", "") for c in choices) == "Yes"
        assert [call["function"]["name"] for call in calls if "id" in call] == ["weather"]
        assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Oslo"}'
        assert choices[-1]["finish_reason"] == "tool_calls"


def heard(client, length):
    """Return (content, calls, reason) of an answer cut after `length` bytes, whole and streamed."""
    whole = ask(client, tools=[WEATHER], max_tokens=length).json()["choices"][0]
    calls = [call["function"] for call in whole["message"].get("tool_calls") or []]
    lines = ask(client, tools=[WEATHER], max_tokens=length, stream=True).text.splitlines()
    choices = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    content = "".join(choice["delta"].get("content") or "" for choice in choices)
    pieces = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    arguments = "".join(piece["function"]["arguments"] for piece in pieces)
    names = [piece["function"]["name"] for piece in pieces if "id" in piece]
    assert (whole["message"]["content"] or "") == content
    assert calls == [{"name": name, "arguments": arguments} for name in names]
    assert whole["finish_reason"] == choices[-1]["finish_reason"]
    return content, calls, whole["finish_reason"]


def test_a_call_that_is_cut_off_ends_by_length_with_as_much_of_it_as_there_is(client, engine):
    """A call whose arguments have begun is sent as a call, and the reason says that it is cut off.

    This is what OpenAI does, streamed or not. A call without arguments yet stays text.
    """
    engine.text = CALL
    begun = CALL.index('{"city"')
    for length in (5, len("<tool_call>"), begun - 1):
        assert heard(client, length) == (CALL[:length], [], "length")
    for length in (begun + 1, begun + 9):
        call = {"name": "weather", "arguments": CALL[begun:length]}
        assert heard(client, length) == ("", [call], "length")
    call = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert heard(client, len(CALL) - 3) == ("", [call], "length")
    assert heard(client, len(CALL) + 1) == ("", [call], "tool_calls")


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("auto", "tool_calls"),
        ("required", "tool_calls"),
        ({"type": "function", "function": {"name": "weather"}}, "stop"),
    ],
)
def test_an_answer_ends_by_calling_unless_the_call_was_asked_for_by_name(
    client, engine, asked, reason
):
    """The finish reasons are those of OpenAI, and of vLLM (vllm-project/vllm#25054)."""
    engine.text = CALL
    (choice,) = ask(client, tools=[WEATHER], tool_choice=asked).json()["choices"]
    lines = ask(client, tools=[WEATHER], tool_choice=asked, stream=True).text.splitlines()
    choices = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]

    assert choice["message"]["tool_calls"]
    assert any(each["delta"].get("tool_calls") for each in choices)
    assert choice["finish_reason"] == choices[-1]["finish_reason"] == reason


def test_calls_and_their_answers_go_back_to_the_model(client, engine):
    function = {"name": "weather", "arguments": '{"a": 1}'}
    ask(
        client,
        messages=[
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ],
    )

    prompt = bytes(i for i in engine.requests[0].prompt_token_ids if i < 256).decode()
    assert '<tool_call>\n{"name": "weather", "arguments": {"a": 1}}\n</tool_call>' in prompt
    assert "user:<tool_response>\nrain\n</tool_response>" in prompt


@pytest.mark.parametrize("arguments", ['{"city":"P', "[1]", "Paris", '{"a":' * 100_000])
def test_arguments_that_are_no_object_go_back_as_the_text_they_are(client, engine, arguments):
    function = {"name": "weather", "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]
    engine.info = replace(engine.info, max_model_len=1_000_000)

    assert ask(client, messages=messages).status_code == 200
    prompt = bytes(i for i in engine.requests[0].prompt_token_ids if i < 256).decode()
    assert f'{{"name": "weather", "arguments": {json.dumps(arguments)}}}' in prompt


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER], "tool_choice": NO_SUCH}, "tool_choice.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, fields, param):
    response = ask(client, **fields)

    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "n": 2})
RESPONSES = ("/v1/responses", {"input": "hi", "include": ["message.output_text.logprobs"]})


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("api", "request_type", "count", "tool"),
    [
        (CHAT, "chat_completions", 2, WEATHER),
        (RESPONSES, "responses", 1, {"type": "function", **WEATHER["function"]}),
    ],
)
def test_every_choice_that_is_searched_for_calls_is_counted(
    client, engine, api, request_type, count, tool, is_streamed
):
    path, body = api
    for text, tools in (("Hello.", [tool]), (CALL, [tool]), (CALL, None)):
        engine.text = text
        fields = {"model": MODEL, "stream": is_streamed, **body}
        answer = client.post(path, json=fields | ({"tools": tools} if tools else {}))
        assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(client.get("/metrics").text)

    (counter,) = (each for each in families if each.name == "vllm:tool_call_parser_invocations")
    counts = {
        tuple(each.labels[name] for name in ("request_type", "mode", "outcome")): each.value
        for each in counter.samples
        if each.name.endswith("_total") and each.value
    }
    mode = "streaming" if is_streamed else "non_streaming"
    assert counts == {
        (request_type, mode, "no_tool_call"): count,
        (request_type, mode, "tool_call"): count,
    }
