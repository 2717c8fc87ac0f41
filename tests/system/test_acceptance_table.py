"""Bad requests by row of the acceptance table: the refusal, what it names, and that nothing else
was disturbed. Rows about faults are proven by the tests that `ELSEWHERE` names.
"""

import json
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app, serving

ROOT = Path(__file__).parents[2]
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "a"}]
Case = tuple[str, bytes, int, str | None, str | None]  # path, body, status, param, code


def raw(body: str | bytes, param: str | None = None, code: str | None = None) -> Case:
    encoded = body.encode() if isinstance(body, str) else body
    return COMPLETIONS, encoded, 400, param, code


def ask(fields: str, param: str, code: str | None = None) -> Case:
    """A good completion request but for some fields, written as JSON."""
    return raw(f'{{"model": "{MODEL}", "prompt": "a", {fields}}}', param, code)


def prompt(value: object, param: str = "prompt", code: str | None = None) -> Case:
    return raw(json.dumps({"model": MODEL, "prompt": value}), param, code)


def chat(messages: object, param: str, *, code: str | None = None, **fields: object) -> Case:
    body = json.dumps({"model": MODEL, "messages": messages} | fields)
    return CHAT, body.encode(), 400, param, code


INVALID, MISSING = "invalid_json", "missing_required_parameter"
UNSUPPORTED, TOO_LONG = "unsupported_parameter", "context_length_exceeded"
ROWS: dict[int, list[Case]] = {
    1: [
        raw(b"", code=INVALID),
        raw(b'{"model": ', code=INVALID),
        raw(b"{} x", code=INVALID),
        raw('{"model": "a"}'.encode("utf-16"), code=INVALID),
        raw(b'\xef\xbb\xbf{"model": "a"}', code=INVALID),
    ],
    2: [ask('"temperature": NaN', "temperature"), ask('"top_p": 1e400', "top_p")],
    3: [raw("[" * 200_000, code=INVALID), raw("[" * 2000 + "]" * 2000, code=INVALID)],
    4: [raw(b'{"model": "\\ud800"}', code=INVALID), raw(b'{"model": "\xff"}', code=INVALID)],
    5: [ask(f'"n": {n}', "n") for n in ('"3"', "true", "1.0", "1000000000000000000")],
    6: [raw("[1]"), raw("null"), raw('"x"')],
    15: [
        (COMPLETIONS, b'{"model": "nobody", "prompt": "a"}', 404, "model", "model_not_found"),
        raw('{"prompt": "a"}', "model", MISSING),
    ],
    16: [
        *(ask(f'"n": {n}', "n") for n in (0, -1, 129, 1_000_000)),
        ask('"n": 2, "best_of": 1', "best_of"),
    ],
    17: [ask(f'"temperature": {t}', "temperature") for t in (-0.1, 2.01, '"hot"')],
    18: [
        *(ask(f'"top_p": {p}', "top_p") for p in (0, -1, 1.1)),
        *(ask(f'"top_k": {k}', "top_k") for k in (-2, 2**31)),
        ask('"min_p": 2', "min_p"),
    ],
    19: [
        *(ask(f'"presence_penalty": {p}', "presence_penalty") for p in (-2.01, 2.01)),
        *(ask(f'"frequency_penalty": {p}', "frequency_penalty") for p in (-2.01, 2.01)),
        *(ask(f'"repetition_penalty": {p}', "repetition_penalty") for p in (0, -1)),
    ],
    20: [
        *(ask(f'"max_tokens": {n}', "max_tokens") for n in (-1, "1e18")),
        ask(f'"max_tokens": {2**31 - 1}', "prompt", TOO_LONG),
        chat(USER, "max_tokens", max_tokens=3, max_completion_tokens=4),
    ],
    21: [prompt("a" * 9000, code=TOO_LONG)],
    23: [prompt(ids) for ids in ([-1], [260], [10**12], [1, "a"], [[1], "a"])],
    24: [*(prompt(empty) for empty in ("", [], None, [[]])), chat([], "messages")],
    25: [prompt(["a"] * 10_000)],
    26: [ask(f'"stop": {json.dumps(s)}', "stop") for s in ("", list("abcde"), "a" * 10_000, 5)],
    27: [
        *(ask(f'"stop_token_ids": [{i}]', "stop_token_ids") for i in (-1, 999)),
        *(ask(f'"logit_bias": {b}', "logit_bias") for b in ('{"abc": 1}', '{"999": 1}')),
        ask('"logit_bias": {"1": 101}', "logit_bias"),
    ],
    28: [
        *(chat(USER, "top_logprobs", logprobs=True, top_logprobs=n) for n in (21, -1)),
        chat(USER, "top_logprobs", top_logprobs=2),
        ask('"logprobs": 21', "logprobs"),
    ],
    29: [ask(f'"seed": {seed}', "seed") for seed in (1.5, 2**64, -(2**63) - 1)],
    30: [ask('"stream_options": {}', "stream_options"), ask('"stream": "yes"', "stream")],
    31: [
        chat([{"role": "root", "content": "a"}], "messages[0].role"),
        chat([{"role": "user"}], "messages[0].content"),
        chat([{"role": "user", "content": 3}], "messages[0].content"),
    ],
    34: [
        chat(USER, "chat_template", code=UNSUPPORTED, chat_template="{{ 1 }}"),
        chat(USER, "chat_template_kwargs.tokenize", chat_template_kwargs={"tokenize": True}),
    ],
    35: [
        ask('"suffix": "x"', "suffix", UNSUPPORTED),
        chat(USER, "response_format", code=UNSUPPORTED, response_format={"type": "json_object"}),
    ],
}
ELSEWHERE = {  # row: the test of its own that proves it
    9: "tests/server/test_http_protocol.py",
    10: "tests/server/test_http_protocol.py",
    13: "tests/server/test_middleware.py",
    39: "tests/server/test_admission.py",
    40: "tests/server/test_admission.py",
    45: "tests/engine/test_engine_machine.py",
    52: "tests/engine/worker/test_row_faults.py",
    53: "tests/engine/worker/test_row_faults.py",
    54: "tests/system/test_recovery.py",
    55: "tests/system/test_recovery.py",
    56: "tests/engine/test_worker_process.py",
    57: "tests/server/test_http_server.py",
    65: "tests/system/test_prefix_cache.py",
    66: "tests/engine/test_engine_machine.py",
}


@pytest.mark.parametrize("row", range(1, 71))
def test_row(row: int) -> None:
    if row in ELSEWHERE:
        assert (ROOT / ELSEWHERE[row]).is_file(), "the test that proves this row is gone"
        pytest.skip(f"row {row} is the subject of {ELSEWHERE[row]}")
    if row not in ROWS:
        pytest.skip(f"row {row} has no run in this table yet")
    engine = FakeEngine()
    with serving(fake_app(engine)) as url, httpx.Client(base_url=url) as client:
        canary = {"model": MODEL, "prompt": "canary", "temperature": 0, "max_tokens": 12}
        before = client.post(COMPLETIONS, json=canary).json()["choices"]
        for path, body, status, param, code in ROWS[row]:
            answer = client.post(path, content=body, headers={"content-type": "application/json"})
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (status, param), (body[-60:], error)
            assert code is None or error["code"] == code, body[-60:]
            assert error["message"]
            assert error["type"] == "invalid_request_error"
            assert "Traceback" not in answer.text
            assert ".py" not in answer.text
        assert len(engine.requests) == 1  # nothing refused reached the engine
        assert client.get("/health").status_code == 200
        assert client.post(COMPLETIONS, json=canary).json()["choices"] == before
