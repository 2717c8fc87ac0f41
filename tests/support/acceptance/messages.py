"""Rows 3, 16, 22, 32, 34 and 36: bodies that must cost little and reach no other host."""

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from live_server import MODEL

from acceptance import bad_bodies
from acceptance.parrot import Parrot, write_tokenizer
from acceptance.refusals import Case, assert_envelope, assert_refused
from acceptance.table_server import CHAT, COMPLETIONS, Serve
from engine.tokenizer import load_tokenizer

_LONGEST_PAUSE_S = 0.05
_LONGEST_VERDICT_S = 5
_TRIES = 6  # the best counts, because other processes may take the CPU away


def deep_bodies(serve: Serve) -> None:
    """Deeply nested bodies do not block the event loop."""
    _refuses_quickly(serve, bad_bodies.DEEP)


def many_values(serve: Serve) -> None:
    """A quarter of a million values cost a scan of the bytes, or end at the first error."""
    _refuses_quickly(serve, bad_bodies.MANY_VALUES)


def huge_prompts(serve: Serve) -> None:
    """Prompts that are far too long are refused without encoding them; 10 MB are not even read.

    What is encoded to see whether it fits is encoded beside the event loop.
    """
    _refuses_quickly(serve, bad_bodies.HUGE_PROMPTS)
    with tempfile.TemporaryDirectory() as name:
        write_tokenizer(Path(name), chat_template="{{ messages[0].content }}")
        roomy = Parrot(max_model_len=bad_bodies.MAX_MODEL_LEN, num_blocks=bad_bodies.MAX_MODEL_LEN)
        tokenizer = load_tokenizer(Path(name))
        serve_roomy = partial(serve, parrot=roomy, directory=Path(name), tokenizer=tokenizer)
        _refuses_quickly(serve_roomy, bad_bodies.ENCODED_PROMPTS)
    body = b'{"model": "m", "prompt": "' + b"a" * 10_000_000 + b'"}'
    with serve(max_request_bytes=4_000_000, limits={"head_timeout_s": 0.5}) as server:
        case = Case(COMPLETIONS, body, code="request_too_large", status=413)
        assert_refused(server.ask(COMPLETIONS, body), case)


def many_choices(serve: Serve) -> None:
    """A million choices are refused before one of them is made."""
    with serve() as server:
        times = []
        for _ in range(_TRIES):
            started = time.perf_counter()
            assert server.complete("a", n=1_000_000).status_code == 400
            times.append(time.perf_counter() - started)
        assert min(times) < 0.05


def no_connections(serve: Serve) -> None:
    """Images, sounds and files are refused, and never fetched."""
    with serve() as server, _outgoing() as addresses:
        for case in bad_bodies.PARTS:
            assert_refused(server.ask(case.path, case.body), case)
    port = int(server.url.rpartition(":")[2])
    assert {address for address in addresses if address != ("127.0.0.1", port)} == set()


def injected_templates(serve: Serve) -> None:
    """Template code in a message is treated as text."""
    code = "{{ ''.__class__.__mro__ }}{% for i in range(9) %}x{% endfor %}{{ config }}"
    with serve() as server:
        messages = [{"role": "user", "content": code}]
        answer = server.ask(CHAT, {"model": MODEL, "messages": messages, "max_tokens": 2})
        assert answer.status_code == 200
        assert code.encode() in bytes(token for token in server.prompts()[-1] if token < 256)


def structures(serve: Serve) -> None:
    """Structures that do not compile, or not in time, are refused by name; others go on."""
    with tempfile.TemporaryDirectory() as name:
        write_tokenizer(Path(name))
        with serve(directory=Path(name), structure_timeout=1.0) as server:
            good = server.ask(CHAT, _structured({"type": "json_object"}))  # starts the compiler
            assert good.status_code == 200, good.text
            server.note_baseline()
            with server.company():
                for asked in _STRUCTURES + _EXPLODING:
                    started = time.perf_counter()
                    answer = server.ask(CHAT, _structured(asked))
                    assert time.perf_counter() - started < _LONGEST_VERDICT_S
                    if asked in _EXPLODING and answer.status_code == 200:
                        continue
                    assert answer.status_code == 400, (str(asked)[:99], answer.text)
                    error = assert_envelope(answer)
                    assert str(error["param"]).startswith("response_format"), error


def _structured(asked: dict[str, object]) -> dict[str, object]:
    return {"model": MODEL, "messages": bad_bodies.USER, "max_tokens": 4, "response_format": asked}


def _schema(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


def _nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(depth):
        schema = {"oneOf": [schema, {"type": "array", "items": schema}]}
    return schema


_STRUCTURES: tuple[dict[str, object], ...] = (
    {"type": "json_schema"},
    {"type": "no_such_type"},
    _schema({"type": "object", "description": "x" * 1_000_000}),
    _schema({"type": "string", "pattern": "(a+"}),
    _schema({"type": "string", "pattern": "*"}),
    _schema({"type": "no-such-type"}),
    _schema({"$ref": "#"}),
    _schema({"$ref": "#/definitions/nowhere"}),
    _schema({"$ref": "https://127.0.0.1:1/schema"}),
    _schema(_nested(11)),
)
# Their automatons are huge; a fast machine may still compile some of them in time.
_EXPLODING = (
    _schema({"type": "string", "pattern": f"({'(a{1,99}){1,99}' * 9})" + "{1,999}"}),
    _schema({"type": "string", "pattern": "([a-z]|[0-9]b)" * 40_000}),
)


def _refuses_quickly(serve: Serve, cases: tuple[Case, ...]) -> None:
    with serve() as server:
        for case in cases:
            pauses = []
            for _ in range(_TRIES):
                pauses.append(
                    server.longest_pause_s(
                        lambda c=case: assert_refused(server.ask(c.path, c.body), c)  # type: ignore[misc]
                    )
                )
                if pauses[-1] < _LONGEST_PAUSE_S:
                    break
            assert min(pauses) < _LONGEST_PAUSE_S, pauses


@contextmanager
def _outgoing() -> Iterator[list[object]]:
    """Collect the addresses that this process resolves or connects to in the meantime."""
    addresses: list[object] = []
    is_watching = [True]

    def note(event: str, args: tuple[object, ...]) -> None:
        if is_watching and event in ("socket.connect", "socket.getaddrinfo"):
            addresses.append(args[1] if event == "socket.connect" else args[:2])

    sys.addaudithook(note)  # audit hooks cannot be removed
    try:
        yield addresses
    finally:
        is_watching.clear()
