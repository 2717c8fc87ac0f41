"""A whole server on a parrot, in a thread of this process, and what must be true of it afterwards.

HTTP, queues, scheduler, blocks and streams are the product's own; only the worker is fake. Whoever
is done with it asks `assert_settled`: nothing lost, nothing left, nobody disturbed.
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

from acceptance.parrot import Parrot, Speller
from engine import AsyncEngine
from server import http_server
from server.app import create_app
from server.service import InferenceService, ServedModel
from server.settings import ServerSettings

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
SECRET = "s3cret-words"  # in inputs; must never come back in an error or in a log
CANARY: Mapping[str, object] = {
    "model": MODEL,
    "prompt": "canary",
    "temperature": 0,
    "seed": 7,
    "max_tokens": 24,
}
_CANARY_PROMPT = tuple(b"canary")
_SETTLE_S = 30.0
_JSON = {"content-type": "application/json"}

Value = TypeVar("Value")


class _Log(logging.Handler):
    """Keeps what is logged meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@dataclass
class TableServer:
    """One server; `serve` makes it."""

    settings: ServerSettings
    worker: MortalWorker
    parrot: Parrot
    engine: AsyncEngine
    service: InferenceService = field(init=False)
    app: FastAPI = field(init=False)
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)  # that open it
    log: _Log = field(default_factory=_Log)
    allowed_errors: set[str] = field(default_factory=set)  # what may be logged as an error
    _loop: asyncio.AbstractEventLoop | None = None
    _canary: Mapping[str, object] = field(default_factory=dict)
    _baseline: tuple[Counter[str], int] = field(default_factory=lambda: (Counter(), 0))

    async def load(self) -> ServedModel:
        """For the service."""
        self._loop = asyncio.get_running_loop()
        await self.engine.start()
        assert self.engine.info is not None
        return ServedModel(self.engine, self.engine.tokenizer)

    def on_loop(self, look: Callable[[], Value]) -> Value:
        """Call something in the server's own loop, where nothing else happens meanwhile."""

        async def call() -> Value:
            return look()

        assert self._loop is not None, "it serves"
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(30)

    @cached_property
    def client(self) -> httpx.Client:
        """One that may come in; it keeps no connection, but costs much to make."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        return httpx.Client(
            base_url=self.url, headers=dict(self.headers), timeout=30, limits=limits
        )

    def ask(self, path: str, content: bytes | Mapping[str, object]) -> httpx.Response:
        """One POST of JSON."""
        if isinstance(content, bytes):
            answer = self.client.post(path, content=content, headers=_JSON)
        else:
            answer = self.client.post(path, json=content)
        assert answer.headers["X-Request-Id"]
        return answer

    def complete(self, prompt: object, **fields: object) -> httpx.Response:
        """Complete a prompt, without chance."""
        body = {"model": MODEL, "prompt": prompt, "seed": 7, "max_tokens": 32, **fields}
        return self.ask(COMPLETIONS, body)

    def text(self, prompt: object, **fields: object) -> str:
        """The one choice's text."""
        answer = self.complete(prompt, **fields)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    def prompts(self) -> list[tuple[int, ...]]:
        """What the worker was ever given but for canaries."""
        return [prompt for prompt in self.parrot.started if prompt != _CANARY_PROMPT]

    def access_lines(self) -> list[str]:
        """What was logged of requests since the last time it was settled."""
        records = list(self.log.records)
        return [each.getMessage() for each in records if each.name == "server.access_log"]

    def longest_pause_s(self, act: Callable[[], object]) -> float:
        """How long the server's loop did nothing else at most while something was done: in its own
        CPU time, so that a busy machine does not count.
        """
        stop, pauses = threading.Event(), [0.0]

        async def tick() -> None:
            last = time.thread_time()
            while not stop.is_set():
                await asyncio.sleep(0.001)
                now = time.thread_time()
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
        """Somebody else streams all the while, and gets what is always said."""
        stop = threading.Event()
        texts: list[str] = []
        self.log.records.clear()  # what was logged before is not about what is done here

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
        """This is how it is when nothing has happened yet."""
        self._canary = self._ask_canary()
        self._stream_canary()
        seen = None
        while seen != self._baseline or self.on_loop(self._engine_leftovers):
            seen = self._baseline
            time.sleep(0.03)  # connections are closed on the other side too
            self._baseline = self.on_loop(_task_names), _num_files()

    def assert_settled(self) -> None:
        """Nothing is left of what was done to it, and it serves as before."""
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
        """In the loop; raises if a structure is not consistent with itself."""
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
    """Makes servers for rows; see `serve`. The one without settings is shared by all rows."""

    def __call__(self, **options: Any) -> AbstractContextManager[TableServer]:
        """A server that is settled again at the end."""


@contextmanager
def serve(
    *,
    parrot: Parrot | None = None,
    directory: Path | None = None,
    limits: Mapping[str, float] | None = None,
    headers: Mapping[str, str] | None = None,
    **settings: object,
) -> Iterator[TableServer]:
    """A server of one's own.

    Args:
        parrot: the model, where another than the usual is needed.
        directory: with its tokenizer, where structures are compiled.
        limits: of connections, beyond what settings say (`ConnectionLimits`).
        headers: that open it.
        settings: the server's.
    """
    checked = ServerSettings.model_validate({"model": MODEL, "access_log": "json", **settings})
    fake = parrot or Parrot()
    worker = MortalWorker(fake)
    engine = AsyncEngine(checked.engine_config(directory or Path(), None), worker, Speller())  # type: ignore[arg-type]
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
    """The text of a streamed completion's events."""
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
