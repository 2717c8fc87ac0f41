"""Structures of outputs: they are parsed, approved, passed to the engine, or refused by name."""

import json
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app
from starlette.testclient import TestClient

from engine.errors import EngineOverloaded, StructureError
from engine.request import FinishReason, Structure
from server.deadlines import Deadlines

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
NAMED = {"name": "s", "schema": SCHEMA, "strict": True}
FORMAT = {"type": "json_schema", "json_schema": NAMED}
CHOICES = {"type": "or", "elements": [{"type": "const_string", "value": t} for t in ("yes", "no")]}


@pytest.fixture
def engine() -> FakeEngine:
    """A fake engine with room for a description of tools, at a token per byte."""
    engine = FakeEngine()
    return FakeEngine(info=replace(engine.info, max_model_len=4096))


def complete(client, **fields):
    body = {"model": MODEL, "prompt": "hi", "max_tokens": 20, **fields}
    return client.post("/v1/completions", json=body)


def chat(client, **fields):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **fields}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("ask", [complete, chat])
@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ("json_object", None)),
        ({"response_format": FORMAT}, ("json_schema", SCHEMA)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}},
            ("json_object", None),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, ("json_schema", SCHEMA)),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, ("json_schema", SCHEMA)),
        ({"structured_outputs": {"json_object": True}}, ("json_object", None)),
        ({"structured_outputs": {"regex": "a+"}}, ("regex", "a+")),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, ("grammar", 'root ::= "a"')),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, ("structural_tag", CHOICES)),
    ],
)
def test_a_structure_is_approved_and_asked_of_the_engine(client, engine, ask, fields, structure):
    assert ask(client, n=2, **fields).status_code == 200

    asked = {request.sampling.structure for request in engine.requests}
    assert len(asked) == 1
    assert [each for each in asked if each] == engine.structures
    if structure is None:
        assert asked == {None}
        return
    kind, source = structure
    (found,) = asked
    assert found.kind == kind
    is_json = kind in ("json_schema", "structural_tag")
    assert (json.loads(found.source) if is_json else found.source or None) == source


@pytest.mark.parametrize("ask", [complete, chat])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {**NAMED, "schema": 5}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {**FORMAT, "type": "json_object"}}, "response_format.json_schema"),
        ({"response_format": {**FORMAT, "type": "text"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            "response_format.schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "grammar": "b"}}, "structured_outputs"),
        (
            {"structured_outputs": {"whitespace_pattern": " "}},
            "structured_outputs.whitespace_pattern",
        ),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": "x" * 200_000}}, "structured_outputs.regex"),
        ({"structured_outputs": {"regex": "a"}, "response_format": FORMAT}, "structured_outputs"),
        ({"guided_json": SCHEMA}, "guided_json"),
    ],
)
def test_wrong_fields_are_refused_by_name(client, engine, ask, fields, param):
    response = ask(client, **fields)

    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert not engine.requests


def test_half_a_surrogate_pair_is_refused(client):
    response = client.post(
        "/v1/completions",
        content=b'{"model": "%s", "prompt": "x", "structured_outputs": {"regex": "\\ud800"}}'
        % MODEL.encode(),
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400


def test_a_deep_schema_is_refused(client):
    schema = '{"items":' * 3000 + "true" + "}" * 3000
    head = json.dumps({"model": MODEL, "prompt": "x"})[:-1]
    response = client.post(
        "/v1/completions",
        content=f'{head}, "structured_outputs": {{"json": {schema}}}}}',
        headers={"content-type": "application/json"},
    )
    assert response.status_code == 400


def test_what_cannot_be_followed_is_the_parameters_fault(client, engine):
    engine.structure_error = StructureError("it is wrong (at #/properties/a)")
    error = complete(client, response_format=FORMAT).json()["error"]

    assert error["param"] == "response_format.json_schema.schema"
    assert error["message"] == f"{error['param']}: it is wrong (at #/properties/a)."
    assert not engine.requests


def test_an_approver_that_is_lost_is_not_the_clients_fault(client, engine):
    engine.structure_error = EngineOverloaded("not now")
    assert complete(client, response_format=FORMAT).status_code == 503


@pytest.mark.parametrize(
    ("limit", "status", "code"),
    [("request_timeout", 504, "timeout"), ("queue_timeout", 503, "queue_timeout")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_checking_is_part_of_the_requests_time(engine, limit, status, code, stream):
    engine.structure_delay_s = 60
    with TestClient(fake_app(engine, **{limit: 0.05})) as client:
        response = complete(client, response_format=FORMAT, stream=stream)

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert not engine.requests


def test_checking_and_generating_share_their_time(client, monkeypatch):
    made = []

    def make(*limits: float) -> Deadlines:
        made.append(Deadlines(*limits))
        return made[-1]

    monkeypatch.setattr("server.generation.Deadlines", make)
    assert complete(client, response_format=FORMAT).status_code == 200
    assert len(made) == 1


def test_nothing_is_checked_for_a_client_that_has_left(live_url, engine):
    engine.structure_delay_s = 60
    body = {"model": MODEL, "prompt": "hi", "response_format": FORMAT}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{live_url}/v1/completions", json=body, timeout=0.5)
    while engine.num_approving:
        time.sleep(0.01)

    assert len(engine.structures) == 1


# ---- calls ----


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


TOOLS = [tool("f", parameters=SCHEMA), tool("g")]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 5}}\n</tool_call>'


def tag(structure: Structure | None) -> dict[str, Any]:
    assert structure is not None
    assert structure.kind == "structural_tag"
    parsed: dict[str, Any] = json.loads(structure.source)
    return parsed


def names(tags: dict[str, Any]) -> list[str]:
    return [each["begin"] for each in tags["tags"]]


def hermes(name: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": '


def test_required_calls_one_function_or_more(client, engine):
    engine.text = CALL
    choice = chat(client, tools=TOOLS, tool_choice="required").json()["choices"][0]

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 5}'
    calls = tag(engine.requests[0].sampling.structure)
    assert names(calls) == [hermes("f"), hermes("g")]
    assert calls["at_least_one"]
    assert not calls["stop_after_first"]
    first, second = (each["content"] for each in calls["tags"])
    assert (first["json_schema"], first["is_optional"]) == (SCHEMA, True)
    assert second["json_schema"] == {"type": "object"}


def test_options_for_the_whole_output_exclude_a_forced_call(client, engine):
    options = {"structured_outputs": {"regex": "a"}}
    error = chat(client, tools=TOOLS, tool_choice="required", **options).json()["error"]

    assert error["param"] == "structured_outputs"
    assert not engine.requests


def test_a_format_beside_a_forced_call_has_to_be_right_all_the_same(client, engine):
    fields = {"tools": TOOLS, "tool_choice": "required", "response_format": FORMAT}
    assert chat(client, **fields).status_code == 200
    calls, content = engine.structures
    assert calls == engine.requests[0].sampling.structure
    assert json.loads(content.source) == SCHEMA

    engine.structure_error = lambda each: StructureError("wrong") if each == content else None
    error = chat(client, **fields).json()["error"]
    assert error["param"] == "response_format.json_schema.schema"


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": {"type": "function", "function": {"name": "g"}}},
        {"tool_choice": "required", "tools": TOOLS[1:], "parallel_tool_calls": False},
    ],
)
def test_one_call_of_one_function(client, engine, fields):
    assert chat(client, **({"tools": TOOLS} | fields)).status_code == 200
    calls = tag(engine.requests[0].sampling.structure)
    assert names(calls) == [hermes("g")]
    assert calls["stop_after_first"]


def test_a_strict_function_is_held_to_its_schema_amid_free_text(client, engine):
    strict = tool("f", parameters=SCHEMA, strict=True)
    assert chat(client, tools=[strict, TOOLS[1]]).status_code == 200
    whole = tag(engine.requests[0].sampling.structure)
    assert (whole["type"], whole["triggers"]) == ("triggered_tags", ["<tool_call>"])
    assert [each["content"]["is_optional"] for each in whole["tags"]] == [False, True]


def test_calls_or_content_of_a_structure(client, engine):
    assert chat(client, tools=TOOLS, response_format=FORMAT).status_code == 200
    calls, content = tag(engine.requests[0].sampling.structure)["elements"]
    assert calls["at_least_one"]
    assert content == {"type": "json_schema", "json_schema": SCHEMA}


def test_without_a_call_nothing_is_held_to_anything(client, engine):
    assert chat(client, tools=TOOLS).status_code == 200
    assert chat(client, tools=TOOLS, tool_choice="none").status_code == 200
    assert {request.sampling.structure for request in engine.requests} == {None}


def test_a_strict_functions_schema_is_to_blame(client, engine):
    engine.structure_error = StructureError("it is wrong")
    strict = tool("f", parameters=SCHEMA, strict=True)
    error = chat(client, tools=[TOOLS[1], strict]).json()["error"]
    assert error["param"] == "tools[1].function.parameters"


@pytest.mark.parametrize(
    ("parser", "begins"),
    [
        ("llama3_json", ['{"name": "f", "parameters": ', '{"name": "g", "parameters": ']),
        ("mistral", []),
    ],
)
def test_calls_are_in_the_familys_own_form(engine, parser, begins):
    from live_server import fake_app
    from starlette.testclient import TestClient

    with TestClient(fake_app(engine, tool_call_parser=parser)) as client:
        assert chat(client, tools=TOOLS, tool_choice="required").status_code == 200
    calls = tag(engine.requests[0].sampling.structure)
    if parser == "llama3_json":
        assert names(calls) == begins
    else:
        assert calls["elements"][0] == {"type": "token", "token": 259}
        assert names(calls["elements"][2])[0] == '{"name": "f", "arguments": '


def test_a_model_may_think_first(engine):
    from live_server import fake_app
    from starlette.testclient import TestClient

    with TestClient(fake_app(engine, reasoning_parser="qwen3")) as client:
        assert chat(client, response_format=FORMAT).status_code == 200
    thought, space, content = tag(engine.requests[0].sampling.structure)["elements"]
    assert thought["type"] == "optional"
    assert thought["content"]["begin"] == "<think>"
    assert space["type"] == "regex"
    assert content["json_schema"] == SCHEMA


def test_responses_take_a_format(client, engine):
    text = {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA, "strict": True}}
    body = {"model": MODEL, "input": "hi", "text": text}
    assert client.post("/v1/responses", json=body).status_code == 200
    assert json.loads(engine.structures[0].source) == SCHEMA
    engine.structure_error = StructureError("it is wrong")
    error = client.post("/v1/responses", json=body).json()["error"]
    assert error["param"] == "text.format"


@pytest.mark.parametrize("kind", ["text", "json_object"])
def test_a_schema_in_a_format_that_has_none_is_refused(client, engine, kind):
    body = {"model": MODEL, "input": "hi", "text": {"format": {"type": kind, "schema": SCHEMA}}}
    response = client.post("/v1/responses", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "text.format.schema"
    assert not engine.requests


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "param"),
    [({}, "structured_outputs.regex"), ({"allowed_token_ids": [5]}, "allowed_token_ids")],
)
def test_what_leaves_no_token_is_the_requests_fault_and_says_which_field(
    client, engine, stream, more, param
):
    engine.finish_with, engine.failure_after = FinishReason.DEAD_END, 0
    fields = {"structured_outputs": {"regex": "a+"}, "stream": stream, **more}

    response = complete(client, **fields)

    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"] == "no_token_allowed"


def test_after_the_first_token_the_stream_says_it(client, engine):
    engine.finish_with, engine.failure_after = FinishReason.DEAD_END, 2

    response = complete(client, structured_outputs={"regex": "a+"}, stream=True)

    *_, failure, done = response.text.split("\n\n")[:-1]
    error = json.loads(failure.removeprefix("data: "))["error"]
    assert (error["code"], error["param"]) == ("no_token_allowed", "structured_outputs.regex")
    assert done == "data: [DONE]"
