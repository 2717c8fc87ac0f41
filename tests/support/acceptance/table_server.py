"""A whole server on a `Parrot`, in a thread of this process, and its common post-conditions.

HTTP, queues, scheduler, blocks and streams are the product's own; only the worker is fake.
`assert_settled` checks afterwards that nothing was lost or left behind and nobody disturbed.
"""

import asyncio
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar
from unittest.mock import patch

import httpx
from fastapi import FastAPI
from live_server import MODEL, serving
from mortal_worker import MortalWorker

from acceptance.parrot import SEED, Parrot, Speller
from engine import AsyncEngine, Tokenizer
from server import http_server
from server.app import create_app
from server.service import InferenceService, ServedModel
from server.settings import ServerSettings

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
SECRET = "s3cret-words"  # part of inputs; must never appear in an error or a log
CANARY: Mapping[str, object] = {
    "model": MODEL,
    "prompt": "canary",
    "temperature": 0,
    "seed": SEED,
    "max_tokens": 24,
}
_CANARY_PROMPT = tuple(b"canary")
_SETTLE_S = 30.0
_JSON = {"content-type": "application/json"}

Value = TypeVar("Value")


class _Log(logging.Handler):
    """A handler that keeps log records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@dataclass
class TableServer:
    """A running server, made by `serve`."""

    settings: ServerSettings
    worker: MortalWorker
    parrot: Parrot
    engine: AsyncEngine
    service: InferenceService = field(init=False)
    app: FastAPI = field(init=False)
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)  # authorize requests
    log: _Log = field(default_factory=_Log)
    allowed_errors: set[str] = field(default_factory=set)  # loggers that may log errors
    _loop: asyncio.AbstractEventLoop | None = None
    _canary: Mapping[str, object] = field(default_factory=dict)
    _baseline: tuple[Counter[str], int] = field(default_factory=lambda: (Counter(), 0))

    async def load(self) -> ServedModel:
        """Start the engine, for the service."""
        self._loop = asyncio.get_running_loop()
        await self.engine.start()
        assert self.engine.info is not None
        return ServedModel(self.engine, self.engine.tokenizer)

    def on_loop(self, look: Callable[[], Value]) -> Value:
        """Call a function in the server's event loop, where nothing else runs at the same time."""

        async def call() -> Value:
            return look()

        assert self._loop is not None, "it serves"
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(30)

    @cached_property
    def client(self) -> httpx.Client:
        """An authorized client, cached because it is costly to make; keeps no connection open."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.Client(
            base_url=self.url, headers=dict(self.headers), timeout=30, limits=limits
        )

    def ask(self, path: str, content: bytes | Mapping[str, object]) -> httpx.Response:
        """Send JSON by POST."""
        if isinstance(content, bytes):
            answer = self.client.post(path, content=content, headers=_JSON)
        else:
            answer = self.client.post(path, json=content)
        assert answer.headers["X-Request-Id"]
        return answer

    def complete(self, prompt: object, **fields: object) -> httpx.Response:
        """Complete a prompt with a fixed seed."""
        body = {"model": MODEL, "prompt": prompt, "seed": SEED, "max_tokens": 32, **fields}
        return self.ask(COMPLETIONS, body)

    def text(self, prompt: object, **fields: object) -> str:
        """Complete a prompt, and return its text."""
        answer = self.complete(prompt, **fields)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    def prompts(self) -> list[tuple[int, ...]]:
        """Return all prompts that the worker was given, except canaries."""
        return [prompt for prompt in self.parrot.started if prompt != _CANARY_PROMPT]

    def access_lines(self) -> list[str]:
        """Return the access log since the server was last settled."""
        records = list(self.log.records)
        return [each.getMessage() for each in records if each.name == "server.access_log"]

    def longest_pause_s(self, act: Callable[[], object]) -> float:
        """Return the longest time that the server's loop was blocked while `act` ran.

        It is measured in CPU time of this process, so that other processes do not count, but a
        thread that keeps the interpreter to itself does.
        """
        stop, pauses = threading.Event(), [0.0]

        async def tick() -> None:
            last = time.process_time()
            while not stop.is_set():
                await asyncio.sleep(0.001)
                now = time.process_time()
                pauses.append(now - last)
                last = now

        assert self._loop is not None
        ticking = asyncio.run_coroutine_threadsafe(tick(), self._loop)
        try:
            act()
        finally:
            stop.set()
            ticking.result(30)
        return max(pauses)

    @contextmanager
    def company(self) -> Iterator[None]:
        """Stream a canary all the while, and assert that its text is always the same."""
        stop = threading.Event()
        texts: list[str] = []
        self.log.records.clear()  # earlier records do not belong to this test

        def stream() -> None:
            while True:
                texts.append(self._stream_canary())
                if stop.wait(0.02):
                    return

        with ThreadPoolExecutor(1) as pool:
            streaming = pool.submit(stream)
            try:
                yield
            finally:
                stop.set()
            streaming.result()
        assert texts
        assert set(texts) == {self._canary["text"]}, "a stream beside it was disturbed"

    def note_baseline(self) -> None:
        """Note the answer of the canary, and the tasks and files of an idle server."""
        self._canary = self._ask_canary()
        self._stream_canary()
        seen = None
        while seen != self._baseline or self.on_loop(self._engine_leftovers):
            seen = self._baseline
            time.sleep(0.03)  # gives the server time to close its side of connections
            self._baseline = self.on_loop(_task_names), _num_files()

    def assert_settled(self) -> None:
        """Assert that the server serves as before and nothing is left of earlier requests."""
        assert self.client.get("/health").status_code == 200
        assert self._ask_canary() == self._canary, "the canary sings another song"
        deadline = time.monotonic() + _SETTLE_S
        while leftovers := self._leftovers():
            assert time.monotonic() < deadline, leftovers
            time.sleep(0.01)
        self._assert_log_is_clean()

    def _ask_canary(self) -> Mapping[str, object]:
        answer = self.ask(COMPLETIONS, CANARY)
        assert answer.status_code == 200, answer.text
        (choice,) = answer.json()["choices"]
        return choice

    def _stream_canary(self) -> str:
        return streamed_text(self.ask(COMPLETIONS, {**CANARY, "stream": True}).text)

    def _leftovers(self) -> list[str]:
        tasks, num_files = self._baseline
        left = self.on_loop(self._engine_leftovers)
        left += [f"task {name}" for name in (self.on_loop(_task_names) - tasks)]
        more = _num_files() - num_files
        return left + ([f"{more} open files"] if more > 0 else [])

    def _engine_leftovers(self) -> list[str]:
        """Return what the engine still holds, and check its invariants; runs on the loop."""
        stats = self.engine.stats()
        self.engine.check()
        counts = {
            "running sequences": stats.num_running,
            "waiting sequences": stats.num_waiting,
            "held blocks": stats.num_blocks_used,
            "unread outputs": self.engine.num_unread,
            "sequences in the worker": len(self.parrot.starts),
        }
        return [f"{count} {name}" for name, count in counts.items() if count]

    def _assert_log_is_clean(self) -> None:
        for record in self.log.records:
            text = record.getMessage()
            assert SECRET not in text, text
            assert "\n" not in text, text
            if record.name not in self.allowed_errors:
                assert record.levelno < logging.ERROR, text
                assert not record.exc_info, text
        self.log.records.clear()


class Serve(Protocol):
    """Makes servers for rows, see `serve`; without options, all rows share one."""

    def __call__(self, **options: Any) -> AbstractContextManager[TableServer]:
        """Return a server that must be settled again at the end."""


@contextmanager
def serve(
    *,
    parrot: Parrot | None = None,
    directory: Path | None = None,
    tokenizer: Tokenizer | None = None,
    limits: Mapping[str, float] | None = None,
    headers: Mapping[str, str] | None = None,
    **settings: object,
) -> Iterator[TableServer]:
    """Run a server, and assert at the end that it is settled.

    Args:
        parrot: The model, if the default one will not do.
        directory: Directory of its tokenizer, which compiling structures needs.
        tokenizer: The tokenizer, if the default one will not do.
        limits: Fields of `ConnectionLimits` that differ from the settings.
        headers: Headers that authorize requests.
        settings: The server's settings.
    """
    checked = ServerSettings.model_validate({"model": MODEL, "access_log": "json", **settings})
    fake = parrot or Parrot()
    worker = MortalWorker(fake)
    config = checked.engine_config(directory or Path(), None)
    engine = AsyncEngine(config, worker, tokenizer or Speller())  # type: ignore[arg-type]
    server = TableServer(checked, worker, fake, engine, headers=headers or {})
    server.service = InferenceService((MODEL,), server.load)
    server.app = create_app(server.service, checked)
    limited = _with_limits(limits or {})
    root = logging.getLogger()
    level = root.level
    root.addHandler(server.log)
    root.setLevel(logging.INFO)
    try:
        with patch.object(http_server, "ConnectionLimits", limited), serving(server.app) as url:
            server.url = url
            _wait_until_ready(server)
            server.note_baseline()
            yield server
            server.assert_settled()
            server.client.close()
    finally:
        root.removeHandler(server.log)
        root.setLevel(level)


def streamed_text(content: str) -> str:
    """Return the text of a streamed completion's events."""
    events = [line[6:] for line in content.splitlines() if line.startswith("data: ")]
    assert events, content
    assert events.pop() == "[DONE]", content
    chunks = [json.loads(event) for event in events]
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def _wait_until_ready(server: TableServer) -> None:
    while (state := server.client.get("/ready").json()["status"]) != "ready":
        assert state == "loading", server.service.failure
        time.sleep(0.005)


def _with_limits(limits: Mapping[str, float]) -> Callable[..., http_server.ConnectionLimits]:
    real = http_server.ConnectionLimits
    return lambda **given: real(**{**given, **limits})


def _task_names() -> Counter[str]:
    mine = asyncio.current_task()
    tasks = (task for task in asyncio.all_tasks() if task is not mine)
    return Counter(getattr(task.get_coro(), "__qualname__", "?") for task in tasks)


def _num_files() -> int:
    return len(os.listdir("/proc/self/fd"))
