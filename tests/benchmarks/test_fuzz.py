"""The fuzzer on the real application around a fake engine; it must also notice errors."""

import argparse
import json

import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app, serving

from benchmarks import fuzz
from benchmarks.fuzz_answers import Answer, troubles_of
from benchmarks.fuzz_cases import Case, make_case, routes_of

CASE = Case(1, "fields", b"POST /v1/completions HTTP/1.1\r\n\r\n{}")
ENVELOPE = {"message": "no", "type": "server_error", "param": None, "code": None}


def answer(status: int, body: bytes, kind: bytes = b"application/json") -> Answer:
    head = b"HTTP/1.1 %d X\r\nContent-Type: %s\r\n\r\n" % (status, kind)
    return Answer.parse(head + body)


def refusal(status: int, **error: object) -> Answer:
    return answer(status, json.dumps({"error": ENVELOPE | error}).encode())


def test_the_server_keeps_its_poise() -> None:
    parser = argparse.ArgumentParser()
    fuzz.add_arguments(parser)
    with serving(fake_app(FakeEngine(), access_log="none")) as url:
        args = parser.parse_args([MODEL, "--base-url", url, "--requests", "400"])
        assert fuzz.run(args) == 0


def test_a_case_is_a_function_of_seed_and_number() -> None:
    document = fake_app(FakeEngine()).openapi()
    routes = routes_of(document, MODEL)
    assert {"/v1/completions", "/v1/chat/completions", "/tokenize"} <= {r.path for r in routes}
    cases = [make_case(0, number, routes, ["/health"]) for number in range(300)]
    assert cases == [make_case(0, number, routes, ["/health"]) for number in range(300)]
    assert len({case.data for case in cases}) > 290
    assert {case.kind for case in cases} == {"fields", "bytes", "head", "raw"}
    assert cases[:9] != [make_case(1, number, routes, ["/health"]) for number in range(9)]


@pytest.mark.parametrize(
    "bad",
    [
        answer(200, b'{"a": NaN}'),
        answer(400, b'{"detail": "no"}'),
        answer(500, b"Internal Server Error", b"text/plain"),
        answer(200, b'data: {"a": 1\n\n', b"text/event-stream"),
        answer(200, b'data: {"error": {"code": "internal_error"}}\n\n', b"text/event-stream"),
        answer(200, b"", b"text/event-stream"),
        refusal(500),
        refusal(503, code="engine_failed"),
        refusal(400, message="in /usr/lib/python3/site.py"),
        Answer.parse(b""),
        Answer.parse(b"what?"),
    ],
)
def test_what_is_wrong_is_seen(bad: Answer) -> None:
    assert troubles_of(CASE, bad)


@pytest.mark.parametrize(
    "good",
    [
        answer(200, b'{"a": 1}'),
        answer(200, b"metrics", b"text/plain"),
        answer(200, b'data: {"a": 1}\n\ndata: [DONE]\n\n', b"text/event-stream"),
        refusal(400),
        refusal(503, code="server_is_overloaded"),
        refusal(504, code="timeout"),
        Answer.parse(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        ),
    ],
)
def test_what_is_right_passes(good: Answer) -> None:
    assert not troubles_of(CASE, good)
    assert not troubles_of(Case(1, "raw", b"x"), Answer.parse(b""))
