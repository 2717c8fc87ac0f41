"""Mistakes in a body are always a 4xx that names the field, and never repeats the input."""

import json
import re
from dataclasses import replace

import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app
from pydantic import BaseModel, ValidationError
from starlette.testclient import TestClient

from server.body import request_error
from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from server.protocol.responses import ResponsesRequest
from server.protocol.tokenize import DetokenizeRequest

SECRET = "s3cret-input"


def post(client: TestClient, content: bytes | str, path: str = "/v1/completions", **headers: str):
    return client.post(
        path, content=content, headers={"Content-Type": "application/json", **headers}
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"model": "fake-model"} trailing',
        '{"model": "fake-model"}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b'{"model": "\\ud800"}',
        b'{"model": "\xff"}',
        b"[" * 200_000,
        b'{"model": "fake-model", "prompt": "a", "n": ' + b"9" * 5_000 + b"}",
    ],
)
def test_what_is_not_json_is_said_so(client, content):
    response = post(client, content)

    assert response.status_code == 400
    assert response.json()["error"]["code"] in ("invalid_json", "invalid_value")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"text": "x"}, "should be a string, token ids, or a list of either."),
        (5, "should be a string, token ids, or a list of either."),
        (["x", None], "should be a string, token ids, or a list of either."),
        (["x", [1]], "should be a string, token ids, or a list of either."),
        (["x", ""], "should not be empty."),
        ([[1], []], "should not be empty."),
        ([], "should not be empty."),
        ("", "should not be empty."),
    ],
)
def test_what_is_wrong_with_a_prompt_is_said(client, path, value, message):
    param = "prompt" if path == "/v1/completions" else "input"
    error = post(client, json.dumps({"model": MODEL, param: value}), path).json()["error"]

    assert (error["param"], error["message"]) == (param, f"{param}: {message}")


def test_an_empty_list_is_told_in_words_of_the_api(client):
    content = json.dumps({"model": MODEL, "messages": []})
    error = post(client, content, "/v1/chat/completions").json()["error"]

    assert error["message"] == "messages: list should have at least 1 item, not 0."


@pytest.mark.parametrize("content", ["[1]", "null", '"x"', "3"])
def test_what_is_no_object_is_refused(client, content):
    response = post(client, content)

    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


WRONG_FIELDS = [
    *[("temperature", value) for value in ("NaN", "Infinity", "1e400", "-0.1", "2.01", '"hot"')],
    *[("top_p", value) for value in ("0", "-1", "1.1", "NaN")],
    *[("top_k", value) for value in ("-2", "2147483648", "1.0")],
    *[("min_p", value) for value in ("2", "-0.1")],
    *[("n", value) for value in ("0", "-1", "129", "1000000", '"3"', "true", "1.0", "1e18")],
    *[("max_tokens", value) for value in ("-1", "2147483648", "1e18", "16.0")],
    *[("min_tokens", value) for value in ("-1", "17")],
    *[("presence_penalty", value) for value in ("2.01", "-2.01")],
    *[("frequency_penalty", value) for value in ("2.01", "-2.01")],
    *[("repetition_penalty", value) for value in ("0", "-1", "1e-300")],
    *[("seed", value) for value in ("18446744073709551616", "-9223372036854775809", "1.5")],
    *[
        ("stop", value)
        for value in ('""', '["a","b","c","d","e"]', f'"{"x" * 10_000}"', "3", "[3]")
    ],
    *[("stop_token_ids", value) for value in ("[-1]", "[260]", str([1] * 129))],
    ("stop_token_ids[0]", '["a"]'),
    *[("logit_bias", value) for value in ('{"260": 1}', '{"-1": 1}', '{"abc": 1}', '{"1": 100.1}')],
    ("logit_bias", '{"1": NaN}'),
    ("logit_bias", json.dumps({str(i): 0 for i in range(1025)})),
    *[("logprobs", value) for value in ("21", "-1", "true")],
    *[("stream", value) for value in ('"yes"', "1")],
    ("stream_options", '{"include_usage": true}'),
    *[("best_of", value) for value in ("0", "129", "1.5")],
    ("early_exit.threshold", '{"threshold": 1.5}'),
    ("early_exit.max_draft_tokens", '{"max_draft_tokens": 17}'),
    ("early_exit.treshold", '{"treshold": 0.5}'),
    *[("prompt", value) for value in ('""', "[]", "null", "[[]]", '["a", ""]', '["a", 1]', "3")],
    *[
        ("prompt", value)
        for value in ("[-1]", "[260]", "[1000000000000]", '["1", [2]]', "[[1], 2]")
    ],
    ("prompt", json.dumps(["a"] * 10_000)),
]


@pytest.mark.parametrize(("param", "value"), WRONG_FIELDS)
def test_a_wrong_field_is_named(client, engine, param, value):
    field = re.split(r"[.\[]", param)[0]
    fields = {"model": f'"{MODEL}"', "prompt": '"a"', field: value}
    response = post(client, "{" + ",".join(f'"{k}": {v}' for k, v in fields.items()) + "}")

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert engine.requests == []


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_a_number_that_json_lacks_is_named_wherever_the_model_would_see_it(client, path, number):
    function = f'{{"name": "f", "parameters": {{"a": [{number}]}}}}'
    tools = f'[{{"type": "function", "function": {function}}}]'
    messages = json.dumps([_user("a")])
    for param, field in (
        ("tools[0].function.parameters", f'"tools": {tools}'),
        ("chat_template_kwargs", f'"chat_template_kwargs": {{"a": {{"b": {number}}}}}'),
    ):
        response = post(client, f'{{"model": "{MODEL}", "messages": {messages}, {field}}}', path)

        assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_of_several_forms_the_error_is_about_the_one_that_was_meant(client):
    response = client.post("/v1/responses", json={"model": MODEL, "input": [_user("a")] * 4097})

    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "input")
    assert "at most 4096 items" in error["message"], "it should not ask for a string"


def test_an_errors_path_ends_before_a_name_that_the_client_made_up():
    class Inner(BaseModel):
        number: int

    class Outer(BaseModel):
        inner: dict[str, Inner]

    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"inner": {SECRET: {"number": "x"}}})
    assert request_error(caught.value).param == "inner"


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("messages", {"messages": []}),
        ("messages", {}),
        ("model", {"messages": [{"role": "user", "content": "a"}], "model": None}),
        ("messages[0].role", {"messages": [{"role": SECRET, "content": "a"}]}),
        ("messages[0].role", {"messages": [{"role": "robot", "content": "a"}]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": 5}]}),
        ("top_logprobs", {"messages": [{"role": "user", "content": "a"}], "top_logprobs": 3}),
        *[
            (
                param,
                {
                    "messages": [{"role": "user", "content": "a"}],
                    "tools": [{"type": "function", "function": {"name": "f"}}],
                    "tool_choice": choice,
                },
            )
            for param, choice in (
                ("tool_choice.function", {"type": "function"}),
                ("tool_choice.function.name", {"type": "function", "function": {}}),
                ("tool_choice.type", {"type": "allowed_tools"}),
            )
        ],
        (
            "max_tokens",
            {
                "messages": [{"role": "user", "content": "a"}],
                "max_tokens": 1,
                "max_completion_tokens": 2,
            },
        ),
    ],
)
def test_a_wrong_chat_field_is_named(client, param, fields):
    response = client.post("/v1/chat/completions", json={"model": MODEL, **fields})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert SECRET not in response.text


@pytest.mark.parametrize("part", ["image_url", "file", "input_audio"])
def test_content_that_is_not_text_is_refused(client, part):
    content = [{"type": "text", "text": "a"}, {"type": part, part: "http://169.254.169.254/"}]
    response = client.post(
        "/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": content}]},
    )

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_content")
    assert error["param"] == "messages[0].content[1]"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("documents", [{"title": "x"}]),
        ("chat_template", "{{ 1 }}"),
        ("suffix", "x"),
        ("guided_regex", "(a+)+"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_options_that_are_not_offered_are_refused_by_name(client, path, name, value):
    prompt = {"prompt": "a"} if path == "/v1/completions" else {"messages": [_user("a")]}
    response = client.post(path, json={"model": MODEL, **prompt, name: value})

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] == name


@pytest.mark.parametrize(
    ("name", "value", "ours", "of_responses"),
    [
        ("grammar", "root ::= 'a'", "structured_outputs.grammar", None),
        ("grammar", {"type": "json", "value": {}}, "structured_outputs.grammar", None),
        ("ebnf", "root ::= 'a'", "structured_outputs.grammar", None),
        ("json_schema", {}, "response_format", "text.format"),
        ("regex", "a+", "structured_outputs.regex", None),
        ("n_predict", -1, "max_tokens", "max_output_tokens"),
        ("max_new_tokens", 5, "max_tokens", "max_output_tokens"),
        ("stop_sequences", ["a"], "stop", None),
    ],
)
def test_other_servers_names_are_refused_with_ours(client, engine, name, value, ours, of_responses):
    bodies = {
        "/v1/completions": ({"prompt": "a"}, ours),
        "/v1/chat/completions": ({"messages": [_user("a")]}, ours),
        "/v1/responses": ({"input": "a"}, of_responses or ours),
    }
    for path, (body, hint) in bodies.items():
        response = client.post(path, json={"model": MODEL, **body, name: value})
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "unsupported_parameter")
        assert error["param"] == name
        assert error["message"] == f"{name} is not a field of this API; use {hint} instead."
    assert not engine.requests


@pytest.mark.parametrize(
    "field", [{"grammar": ""}, {"stop_sequences": []}, {"max_new_tokens": None}]
)
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", {"prompt": "a"}), ("/v1/responses", {"input": "a"})]
)
def test_other_servers_fields_that_ask_for_nothing_pass(client, path, body, field):
    assert client.post(path, json={"model": MODEL, **body, **field}).status_code == 200


def test_where_nothing_is_generated_other_servers_names_are_unknown_fields(client):
    body = {"model": MODEL, "input": "a", "max_new_tokens": 5}

    assert client.post("/v1/embeddings", json=body).status_code == 200
    assert num_unknown(client) == 1


def test_options_that_ask_for_nothing_and_unknown_fields_pass(client):
    response = client.post(
        "/v1/chat/completions",
        json={
            "model": MODEL,
            "messages": [_user("a")],
            "tools": [],
            "tool_choice": "none",
            "response_format": {"type": "text"},
            "echo": False,
            "parallel_tool_calls": True,
            "no_such_option": {"x": [1, 2]},
            "user": "somebody",
        },
    )

    assert response.status_code == 200


def num_unknown(client: TestClient) -> float:
    (line,) = (
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("adadecode:unknown_request_fields_total")
    )
    return float(line.split()[-1])


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a", "top_k": 5}),
        ("/v1/embeddings", {"input": "a"}),
        ("/tokenize", {"prompt": "a"}),
        ("/detokenize", {"tokens": [1]}),
    ],
)
def test_unknown_fields_are_counted_or_refused(path, fields):
    body = {"model": MODEL, **fields}
    with TestClient(fake_app(FakeEngine())) as client:
        assert client.post(path, json={**body, "no_such": 1, SECRET: 2}).status_code == 200
        assert num_unknown(client) == 2
    with TestClient(fake_app(FakeEngine(), reject_unknown_fields=True)) as client:
        assert client.post(path, json=body).status_code == 200
        for name, param in (("no_such", "no_such"), (SECRET, None)):
            error = client.post(path, json={**body, name: 1}).json()["error"]
            assert (error["code"], error["param"]) == ("unknown_parameter", param)
            assert SECRET not in error["message"]


_TOOL = {"type": "function", "function": {"name": "f", "paramaters": {}}, "foo": 1}
_FLAT_TOOL = {"type": "function", "name": "f", "foo": 1}
_FORGIVEN = {"role": "user", "content": [{"type": "text", "text": "a", "foo": 1}], "foo": 1}


@pytest.mark.parametrize(
    ("path", "fields", "params"),
    [
        (
            "/v1/completions",
            {"prompt": "a", "stream": True, "stream_options": {"include_usag": True}},
            ["stream_options.include_usag"],
        ),
        (
            "/v1/completions",
            {"prompt": "a", "response_format": {"type": "json_object", "shema": {}}},
            ["response_format.shema"],
        ),
        *(
            (
                path,
                {"messages": [_FORGIVEN], "tools": [_TOOL]},
                ["tools[0].foo", "tools[0].function.paramaters"],
            )
            for path in ("/v1/chat/completions", "/tokenize")
        ),
        ("/v1/chat/completions", {"messages": [_FORGIVEN]}, []),
        ("/v1/responses", {"input": [_FORGIVEN], "tools": [_FLAT_TOOL]}, ["tools[0].foo"]),
        ("/v1/responses", {"input": "a", "reasoning": {"foo": 1}}, ["reasoning.foo"]),
        (
            "/v1/responses",
            {"input": "a", "text": {"foo": 1, "format": {"type": "text", "bar": 1}}},
            ["text.foo", "text.format.bar"],
        ),
    ],
)
def test_unknown_fields_of_inner_objects_are_counted_and_refused_too(path, fields, params):
    info = replace(FakeEngine().info, max_model_len=4096)
    body = {"model": MODEL, **fields}
    with TestClient(fake_app(FakeEngine(info=info))) as client:
        assert client.post(path, json=body).status_code == 200
        assert num_unknown(client) == len(params)
    with TestClient(fake_app(FakeEngine(info=info), reject_unknown_fields=True)) as client:
        response = client.post(path, json=body)
        assert response.status_code == (400 if params else 200)
        if params:
            assert response.json()["error"]["param"] == params[0]


@pytest.mark.parametrize("name", [SECRET, f"{SECRET}.b", "a." + SECRET, "x" * 41])
def test_an_unknown_inner_fields_name_is_not_repeated_unless_it_looks_like_one(name):
    body = {"model": MODEL, "prompt": "a", "stream": True, "stream_options": {name: 1}}
    with TestClient(fake_app(FakeEngine(), reject_unknown_fields=True)) as client:
        error = client.post("/v1/completions", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("unknown_parameter", None)
    assert name not in error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Encoding": "gzip"},
    ],
)
def test_only_plain_json_is_read(client, headers):
    assert post(client, "{}", **headers).status_code == 415


def test_a_charset_in_the_content_type_is_fine(client):
    body = json.dumps({"model": MODEL, "prompt": "a"})
    headers = {"Content-Type": "application/json; charset=utf-8"}

    assert post(client, body, **headers).status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True])
def test_large_bodies_are_refused(is_chunked):
    content = b'{"model": "' + b"x" * 5000 + b'"}'
    with TestClient(fake_app(FakeEngine(), max_request_bytes=1000)) as client:
        response = post(client, iter([content[:600], content[600:]]) if is_chunked else content)

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_may_be_as_large_as_is_allowed(is_chunked):
    content = f'{{"model": "{MODEL}", "prompt": "a"}}'.ljust(1000).encode()
    with TestClient(fake_app(FakeEngine(), max_request_bytes=1000)) as client:
        response = post(client, iter([content[:600], content[600:]]) if is_chunked else content)

    assert response.status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        "[" + '"",' * 400 + '""]',  # fewer than numbers may be
        "[" * 300 + "1," * 300 + "1" + "]" * 300,
        "[" + "1," * 5000 + "1]",
        "[" + '"",' * 5000 + '""]',
        "[" + r'"\\\"",' * 5000 + "1]",
        "{" + ",".join(f'"k{number}":1' for number in range(5000)) + "}",
    ],
)
def test_bodies_of_too_many_values_are_refused(value):
    with TestClient(fake_app(FakeEngine(), max_request_bytes=65536)) as client:
        response = post(client, f'{{"model": "{MODEL}", "prompt": "a", "x": {value}}}')

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("ids", [range(3000), [[each] * 300 for each in range(9)]])
def test_token_ids_in_lists_may_be_many(ids):
    body = {"model": MODEL, "prompt": list(ids), "max_tokens": 1}
    with TestClient(fake_app(FakeEngine(), max_request_bytes=65536)) as client:
        assert client.post("/v1/completions", json=body).status_code != 413


@pytest.mark.parametrize(
    ("wire_type", "body"),
    [
        (ChatCompletionRequest, {"messages": [{"role": "user", "content": [1] * 5000}]}),
        (CompletionRequest, {"prompt": "a", "allowed_token_ids": [1.5] * 5000}),
        (CompletionRequest, {"prompt": "a", "logit_bias": {str(i): "x" for i in range(5000)}}),
        (ResponsesRequest, {"input": [1] * 5000}),
        (ResponsesRequest, {"input": [{"content": [1] * 5000}]}),
        (DetokenizeRequest, {"tokens": [1.5] * 5000}),
    ],
)
def test_a_list_of_wrong_entries_is_one_error(wire_type, body):
    with pytest.raises(ValidationError) as caught:  # an error costs ten times as much as an entry
        wire_type.model_validate_json(json.dumps({"model": MODEL, **body}))

    assert caught.value.error_count() < 4


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "," * 9000},
        {"user": '",\\' * 5000},
        {"prompt": "a\\", "user": "," * 9000},
        {"x": {f"k{number}": "a,b,c" for number in range(200)}},
    ],
)
def test_commas_in_texts_are_no_values(fields):
    body = {"model": MODEL, "prompt": "a", **fields}
    with TestClient(fake_app(FakeEngine(), max_request_bytes=65536)) as client:
        assert client.post("/v1/completions", json=body).status_code == 200


def test_a_control_character_in_the_prompt_is_fine(client):
    assert (
        client.post("/v1/completions", json={"model": MODEL, "prompt": "a\0b"}).status_code == 200
    )


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
