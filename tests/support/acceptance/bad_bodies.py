"""Rows 1 to 8 and 15 to 36: bodies that are refused for their contents."""

import json

from live_server import MODEL

from acceptance.refusals import (
    INVALID_JSON,
    MISSING,
    TOO_LONG,
    UNSUPPORTED,
    USER,
    Case,
    ask,
    chat,
    embed,
    prompt,
    raw,
    turn,
    values,
)
from acceptance.table_server import CHAT, COMPLETIONS, RESPONSES, SECRET

_DEEP = '{"a":' * 1000 + "1" + "}" * 1000
_DEEP_TOOL = (
    f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "a"}}], "tools": [{{"type": '
    f'"function", "function": {{"name": "f", "parameters": {_DEEP}}}}}]}}'
)
_BIG = 10**18
_IDS = ("[-1]", "[260]", "[999]", f"[{10**12}]")

NO_JSON = (
    raw(b"", code=INVALID_JSON),
    raw(b'{"model": ', code=INVALID_JSON),
    raw(b"{} x", code=INVALID_JSON),
    raw('{"model": "a"}'.encode("utf-16"), code=INVALID_JSON),
    raw(b'\xef\xbb\xbf{"model": "a"}', code=INVALID_JSON),
    *(
        Case(path, b"{", code=INVALID_JSON)
        for path in (CHAT, RESPONSES, "/tokenize", "/detokenize")
    ),
)
NO_NUMBERS = (
    *values("temperature", "NaN", "Infinity", "-Infinity", "1e400", '"NaN"'),
    *values("top_p", "1e400", "NaN"),
    *values("min_p", "NaN"),
    *values("presence_penalty", "NaN", "-1e999"),
    *values("repetition_penalty", "Infinity"),
    ask('"logit_bias": {"1": NaN}', "logit_bias"),
    ask('"logit_bias": {"1": -Infinity}', "logit_bias"),
    ask('"early_exit": {"threshold": NaN}', "early_exit.threshold"),
    ask('"temperature": NaN, "no_such_field": NaN', "temperature"),
)
DEEP = (
    raw("[" * 200_000, code=INVALID_JSON),
    raw("[" * 2000 + "]" * 2000, code=INVALID_JSON),
    raw(f'{{"model": "a", "x": {_DEEP}}}', code=INVALID_JSON),
    Case(CHAT, _DEEP_TOOL.encode(), code=INVALID_JSON),
)
_MANY = 250_000
MANY_VALUES = (
    *(
        Case(path, body.encode(), code="request_too_large", status=413)
        for path, body in (
            (COMPLETIONS, f'{{"model": "{MODEL}", "prompt": [{"[]," * _MANY}[1]]}}'),
            (COMPLETIONS, f'{{"model": "{MODEL}", "prompt": "a", "x": [{"null," * _MANY}1]}}'),
            (CHAT, f'{{"messages": [{{"role": "user", "content": [{"{}," * _MANY}1]}}]}}'),
            (RESPONSES, f'{{"model": "{MODEL}", "input": [{"{}," * _MANY}1]}}'),
        )
    ),
    Case(
        CHAT,
        f'{{"messages": [{{"role": "user", "content": [{"1," * _MANY}1]}}]}}'.encode(),
        "messages[0].content[0]",
    ),
    Case("/detokenize", f'{{"tokens": [{"1.5," * _MANY}1]}}'.encode(), "tokens[0]"),
)
NO_TEXT = (
    raw(b'{"model": "\\ud800"}', code=INVALID_JSON),
    raw(b'{"model": "\\udc00\\ud800"}', code=INVALID_JSON),
    raw(b'{"model": "\xff"}', code=INVALID_JSON),
    raw(b'{"model": "\xed\xa0\x80"}', code=INVALID_JSON),
)
NO_INTEGERS = (
    *values("n", '"3"', "true", "1.0", _BIG, "1e18", "1e0"),
    *values("max_tokens", '"3"', "true", "16.0", "1e18"),
    *values("seed", "true"),
    *values("top_k", "true", "1.0"),
    *values("stream", "1", "0"),
    *values("ignore_eos", '"true"', "1"),
    ask('"stop_token_ids": [true]', "stop_token_ids[0]"),
    prompt([True]),
    raw(f'{{"model": "{MODEL}", "prompt": "a", "n": {"9" * 5000}}}', code=INVALID_JSON),
)
NO_OBJECTS = tuple(raw(body) for body in ("[1]", "null", '"x"', "3", "true"))
MODELS = (
    Case(
        COMPLETIONS,
        b'{"model": "' + SECRET.encode() + b'", "prompt": "a"}',
        "model",
        "model_not_found",
        404,
    ),
    raw('{"prompt": "a"}', "model", MISSING),
    raw('{"prompt": "a", "model": null}', "model"),
    raw(json.dumps({"prompt": "a", "model": "m" * 1_000_000}), "model"),
)
CHOICES = (*values("n", 0, -1, 129, 1_000_000), ask('"n": 2, "best_of": 1', "best_of"))
TEMPERATURES = values("temperature", -0.1, 2.01, '"hot"')
TRUNCATIONS = (
    *values("top_p", 0, -1, 1.1),
    *values("top_k", -2, 2**31),
    *values("min_p", 2, -0.1),
)
PENALTIES = (
    *values("presence_penalty", -2.01, 2.01),
    *values("frequency_penalty", -2.01, 2.01),
    *values("repetition_penalty", 0, -1),
)
LENGTHS = (
    *values("max_tokens", -1, "1e18", _BIG, 2**31),
    ask(f'"max_tokens": {2**31 - 1}', "prompt", TOO_LONG),
    chat(USER, "max_tokens", max_tokens=3, max_completion_tokens=4),
    chat(USER, "max_tokens", max_tokens=0),
    *(chat(USER, "max_completion_tokens", max_completion_tokens=n) for n in (-1, 2**31)),
    ask('"min_tokens": 9, "max_tokens": 8', "min_tokens"),
)
TOO_LONG_PROMPTS = (
    prompt("a" * 9000, code=TOO_LONG),
    prompt([1] * 600, code=TOO_LONG),
    ask('"max_tokens": 512', "prompt", TOO_LONG),
    chat([{"role": "user", "content": "a" * 9000}], "messages", code=TOO_LONG),
)
HUGE_PROMPTS = (
    prompt("a" * 3_000_000, code=TOO_LONG),
    chat([{"role": "user", "content": "a" * 3_000_000}], "messages", code=TOO_LONG),
)
MAX_MODEL_LEN = 1024  # where the next ones are refused
_LONGEST = "1" * (256 * MAX_MODEL_LEN - 100)  # any longer one is refused before it is encoded
ENCODED_PROMPTS = (
    prompt(_LONGEST, code=TOO_LONG),
    chat([{"role": "user", "content": _LONGEST}], "messages", code=TOO_LONG),
)
NO_TOKENS = (
    *(prompt(ids) for ids in ([-1], [260], [10**12], [1, "a"], [[1], "a"], ["1", [2]], [[[1]]])),
    *(Case("/detokenize", f'{{"tokens": {ids}}}'.encode(), "tokens") for ids in _IDS),
    Case("/detokenize", b'{"tokens": ["1"]}', "tokens[0]"),
    *(embed(ids) for ids in ([-1], [260], [10**12], [[1], "a"], [True])),
)
NO_PROMPTS = (
    *(prompt(empty) for empty in ("", [], None, [[]], ["a", ""], {}, 3)),
    chat([], "messages"),
    chat(None, "messages"),
    Case(CHAT, json.dumps({"model": MODEL}).encode(), "messages", MISSING),
    *(embed(empty) for empty in ("", [], None, [[]], 3)),
)
TOO_MANY_PROMPTS = (
    prompt(["a"] * 10_000),
    prompt([[1]] * 10_000),
    embed(["a"] * 10_000),
)
STOPS = values(
    "stop", '""', json.dumps(list("abcde")), json.dumps("a" * 10_000), 5, "[5]", '["a", ""]'
)
TOKEN_IDS = (
    *values("stop_token_ids", *_IDS, [1] * 129),
    ask('"stop_token_ids": ["a"]', "stop_token_ids[0]"),
    *values("allowed_token_ids", *_IDS, "[]"),
    ask('"allowed_token_ids": ["a"]', "allowed_token_ids[0]"),
    *values("logit_bias", '{"abc": 1}', '{"-1": 1}', '{"260": 1}', '{"1": 101}', '{"1": -100.5}'),
    ask(f'"logit_bias": {json.dumps({str(i): 0 for i in range(1025)})}', "logit_bias"),
)
LOGPROBS = (
    *(chat(USER, "top_logprobs", logprobs=True, top_logprobs=n) for n in (21, -1)),
    chat(USER, "top_logprobs", top_logprobs=2),
    *values("logprobs", 21, -1, "true"),
    *values("prompt_logprobs", 21, -1, "true"),
    ask('"prompt_logprobs": 1, "stream": true', "prompt_logprobs"),
)
SEEDS = values("seed", 1.5, 2**64, -(2**63) - 1)
STREAMS = (
    *values("stream_options", "{}", '{"include_usage": true}'),
    *values("stream", '"yes"', "2"),
    ask('"stream": true, "stream_options": {"include_usage": 1}', "stream_options.include_usage"),
)
TURNS = (
    turn(".role", role="root", content=SECRET),
    turn(".role", content="a"),
    turn(".content", role="user"),
    turn(".content", role="user", content=3),
    turn(".content", role="assistant"),
    turn(".tool_call_id", role="tool", content="a"),
    chat(["a"], "messages[0]"),
    chat({"role": "user", "content": "a"}, "messages"),
)
_PARTS = (
    {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
    {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "file", "file": {"file_data": "data:;base64,AAAA"}},
    {"type": "video_url", "video_url": {"url": "http://127.0.0.1:1/x"}},
)
PARTS = tuple(
    chat(
        [{"role": "user", "content": [part]}], "messages[0].content[0]", code="unsupported_content"
    )
    for part in _PARTS
)
TEMPLATES = (
    chat(USER, "chat_template", code=UNSUPPORTED, chat_template="{{ 1 }}"),
    chat(
        USER,
        "chat_template",
        code=UNSUPPORTED,
        chat_template="{% for a in range(9**9) %}{% endfor %}",
    ),
    *(
        chat(USER, f"chat_template_kwargs.{name}", chat_template_kwargs={name: value})
        for name, value in (("tokenize", True), ("chat_template", "{{ 1 }}"), ("messages", []))
    ),
)
NOT_OFFERED = (
    ask('"suffix": "x"', "suffix", UNSUPPORTED),
    ask('"logits_processors": ["os.system"]', "logits_processors", UNSUPPORTED),
    ask('"prompt_embeds": "gAN9"', "prompt_embeds", UNSUPPORTED),
    ask('"guided_regex": "(a+)+"', "guided_regex", UNSUPPORTED),
    chat(USER, "audio", code=UNSUPPORTED, audio={"voice": "x"}),
    chat(USER, "functions", code=UNSUPPORTED, functions=[{"name": "f"}]),
)
UNHEARD = (
    *(
        chat(USER, f"response_format.{name}", response_format={"type": kind, name: schema})
        for kind in ("json_object", "text")
        for name, schema in (("schema", {}), ("json_schema", {"name": "s", "schema": {}}))
    ),
    *(
        ask(f'"{name}": {value}', name, UNSUPPORTED)
        for name, value in (
            ("ebnf", '"root ::= [a]"'),
            ("grammar", '"root ::= [a]"'),
            ("json_schema", "{}"),
            ("regex", '"a+"'),
            ("n_predict", "4"),
            ("num_predict", "4"),
            ("max_new_tokens", "4"),
            ("max_tokens_to_sample", "4"),
            ("stop_sequences", '["a"]'),
        )
    ),
)
