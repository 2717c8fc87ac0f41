"""Parses the answers that the fuzzer gets, and finds what is wrong with them; knows no sockets."""

import json
import re
from dataclasses import dataclass
from typing import Any

from benchmarks.fuzz_cases import Case

_MEANT = {(503, "server_is_overloaded"), (503, "queue_timeout"), (504, "timeout")}
_INSIDE = re.compile(rb"Traceback|\.py\b|0x[0-9a-f]{6}|/(?:home|root|usr|tmp)/")


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response, complete or not; status 0: there was none."""

    status: int
    headers: bytes
    body: bytes

    @classmethod
    def parse(cls, data: bytes) -> "Answer":
        """Parse the first final response in what was received."""
        head, separator, body = data.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/1\.1 (\d{3})", head)
        if match is None or not separator:
            return cls(0, b"", data)
        status = int(match.group(1))
        if status < 200:  # 100 Continue
            return cls.parse(body)
        if b"transfer-encoding: chunked" in head.lower():
            body = _joined(body)
        return cls(status, head.lower(), body)


def troubles_of(case: Case, answer: Answer) -> list[str]:
    """Return all that is wrong with an answer, in words."""
    if answer.status == 0:
        if answer.body:
            return [f"gets an answer that is not HTTP: {answer.body[:80]!r}"]
        return ["is not answered"] if case.is_http else []
    if b"text/event-stream" in answer.headers:
        return _troubles_of_stream(answer.body)
    if b"application/json" not in answer.headers:
        return [f"has status {answer.status}"] if answer.status >= 400 else []
    is_head = case.data.startswith(b"HEAD ")
    try:
        content = None if is_head else json.loads(answer.body, parse_constant=_refuse_constant)
    except ValueError:
        return [f"has status {answer.status} and a body that is not JSON: {answer.body[:80]!r}"]
    return [] if answer.status < 400 or is_head else _troubles_of_error(answer, content)


def _troubles_of_error(answer: Answer, content: Any) -> list[str]:
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict) or error.keys() != {"message", "type", "param", "code"}:
        if answer.status == 503 and content.keys() == {"status"}:  # the answer of a health probe
            return []
        return [f"has status {answer.status} without the envelope: {answer.body[:80]!r}"]
    troubles = []
    if answer.status >= 500 and (answer.status, error["code"]) not in _MEANT:
        troubles.append(f"has status {answer.status}: {error['message'][:80]}")
    if _INSIDE.search(answer.body):
        troubles.append(f"leaks server internals: {answer.body[:160]!r}")
    return troubles


def _troubles_of_stream(body: bytes) -> list[str]:
    events = re.findall(rb"^data: (.*?)\r?$", body, re.MULTILINE)
    for event in events:
        if event == b"[DONE]":
            continue
        try:
            content = json.loads(event, parse_constant=_refuse_constant)
        except ValueError:
            return [f"has an event that is no JSON: {event[:80]!r}"]
        error = content.get("error")
        if error and error.get("code") not in {code for _, code in _MEANT}:
            return [f"has an error in its stream: {event[:160]!r}"]
    return [] if events else ["has a stream without events"]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _joined(body: bytes) -> bytes:
    """Join the chunks of a body, as far as it was received."""
    joined = bytearray()
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size.partition(b";")[0] or b"0", 16)
        joined += rest[:length]
        body = rest[length + 2 :]
    return bytes(joined)
