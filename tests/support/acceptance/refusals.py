"""Checks of refused requests: the error is right, and nothing reaches the engine."""

import json
import re
from dataclasses import dataclass

import httpx
from live_server import MODEL

from acceptance.row import Check
from acceptance.table_server import CHAT, COMPLETIONS, SECRET, Serve

USER = [{"role": "user", "content": "a"}]
INVALID_JSON, MISSING = "invalid_json", "missing_required_parameter"
UNSUPPORTED, TOO_LONG = "unsupported_parameter", "context_length_exceeded"
# Internal paths, addresses and names must not appear in an answer.
_INTERNAL = re.compile(
    r"Traceback|\.py\b|0x[0-9a-f]{4,}|/(?:home|usr|tmp|root|secret|proc)\b|<class|object at"
    r"|pydantic|starlette|fastapi|jinja|Error\b.*\(|Exception|asyncio|ValidationError"
)


@dataclass(frozen=True, slots=True)
class Case:
    """A body and the error that it gets."""

    path: str
    body: bytes
    param: str | None = None
    code: str | None = None  # None: any code
    status: int = 400


def raw(body: str | bytes, param: str | None = None, code: str | None = None) -> Case:
    """Make a case with this body for completions."""
    return Case(COMPLETIONS, body.encode() if isinstance(body, str) else body, param, code)


def ask(fields: str, param: str, code: str | None = None) -> Case:
    """Make a completion request that is good but for some fields, which are given as JSON."""
    return raw(f'{{"model": "{MODEL}", "prompt": "a", {fields}}}', param, code)


def values(name: str, *texts: object, code: str | None = None) -> tuple[Case, ...]:
    """Make cases of values of one field, given as JSON, that are refused by its name."""
    return tuple(ask(f'"{name}": {text}', name, code) for text in texts)


def prompt(value: object, param: str = "prompt", code: str | None = None) -> Case:
    """Make a completion request for something that is no prompt."""
    return raw(json.dumps({"model": MODEL, "prompt": value}), param, code)


def embed(value: object) -> Case:
    """Make an embedding request for something that has no embedding."""
    body = json.dumps({"model": MODEL, "input": value}).encode()
    return Case("/v1/embeddings", body, "input")


def chat(messages: object, param: str, *, code: str | None = None, **fields: object) -> Case:
    """Make a chat request."""
    body = json.dumps({"model": MODEL, "messages": messages} | fields)
    return Case(CHAT, body.encode(), param, code)


def turn(param: str, code: str | None = None, **fields: object) -> Case:
    """Make a chat request whose second turn is wrong."""
    return chat([*USER, fields], f"messages[1]{param}", code=code)


def refuses(*cases: Case) -> Check:
    """Return a check that every case is refused by name and never reaches the engine."""

    def check(serve: Serve) -> None:
        with serve() as server:
            before = len(server.prompts())
            for case in cases:
                answer = server.ask(case.path, case.body)
                assert_refused(answer, case)
            assert len(server.prompts()) == before

    check.label = f"{_bodies(len(cases))} refused"  # type: ignore[attr-defined]
    return check


def serves(*bodies: tuple[str, dict[str, object]]) -> Check:
    """Return a check that bodies are served although they look odd."""

    def check(serve: Serve) -> None:
        with serve() as server:
            for path, fields in bodies:
                base = {"prompt": "a"} if path == COMPLETIONS else {"messages": USER}
                answer = server.ask(path, {"model": MODEL, "max_tokens": 4, **base, **fields})
                assert answer.status_code == 200, (fields, answer.text)

    check.label = f"{_bodies(len(bodies))} served"  # type: ignore[attr-defined]
    return check


def _bodies(count: int) -> str:
    return "1 body" if count == 1 else f"{count} bodies"


def assert_refused(answer: httpx.Response, case: Case) -> None:
    """Assert that status, parameter, code and type of an error are right."""
    shown = case.body[-80:]
    assert answer.status_code == case.status, (shown, answer.text)
    error = assert_envelope(answer)
    assert error["param"] == case.param, (shown, error)
    assert case.code is None or error["code"] == case.code, (shown, error)
    assert error["type"] == "invalid_request_error"


def assert_envelope(answer: httpx.Response) -> dict[str, str | None]:
    """Return the error of OpenAI's envelope, which must not contain internals or input."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, str | None] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["code"]
    assert not _INTERNAL.search(answer.text), answer.text
    assert SECRET not in answer.text
    return error
