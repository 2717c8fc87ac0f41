"""Rows 39 to 45 and 70: more requests or connections than the server has room for."""

import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
from live_server import MODEL

from acceptance.parrot import Parrot
from acceptance.refusals import Case, assert_envelope, assert_refused
from acceptance.sockets import connection
from acceptance.table_server import CHAT, COMPLETIONS, Serve, TableServer

_SLOW = 0.006  # seconds per step
_ALMOST_NOTHING = 0.1  # seconds per step that keep requests open: 100 tokens take 10 s
_LONGEST_REFUSAL_MS = 50


def full_queue(serve: Serve) -> None:
    """Requests beyond the limits on requests or prompt tokens are refused at once."""
    limits = {"max_num_seqs": 2, "max_num_queued_reqs": 2}
    with serve(parrot=Parrot(step_time_s=_SLOW), **limits) as server:
        _assert_some_refused(server)
        before = len(server.access_lines())
        with _busy(server, 4):
            for _ in range(10):
                _assert_overloaded(server.complete("late"))
            took_ms = [json.loads(line)["duration_ms"] for line in server.access_lines()[before:]]
        assert statistics.median(took_ms) < _LONGEST_REFUSAL_MS
    limits = {"max_num_seqs": 1, "max_num_queued_tokens": 40}
    with serve(parrot=Parrot(step_time_s=_SLOW), **limits) as server:
        _assert_some_refused(server)


def one_keys_share(serve: Serve) -> None:
    """Each key has its own limit on open requests."""
    keys = {"api_key": ["a", "b"], "headers": {"Authorization": "Bearer a"}}
    with serve(parrot=Parrot(step_time_s=_SLOW), max_concurrent_per_key=2, **keys) as server:
        with _busy(server, 2):
            refused = server.complete("third")
            body = {"model": MODEL, "prompt": "other", "max_tokens": 3}
            headers = {"Authorization": "Bearer b"}
            assert server.client.post(COMPLETIONS, json=body, headers=headers).status_code == 200
        error = assert_envelope(refused)
        assert (refused.status_code, error["type"]) == (429, "rate_limit_error")
        assert error["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["Retry-After"]) <= 120


def all_or_nothing(serve: Serve) -> None:
    """If there is room for three of four choices, none is queued."""
    limits = {"max_num_seqs": 2, "max_num_queued_reqs": 3}
    with serve(parrot=Parrot(step_time_s=_SLOW), **limits) as server:
        with _busy(server, 2):
            refused = server.complete("four", n=4)
            _assert_overloaded(refused)
            stats = server.on_loop(server.engine.stats)
            assert stats.num_running + stats.num_waiting == 2
        assert server.prompts()[-1] != tuple(b"four")
        assert server.complete("four", n=4).status_code == 200


def time_in_the_queue(serve: Serve) -> None:
    """A request that waits too long is refused before any header is sent."""
    slow = Parrot(step_time_s=_SLOW)
    with serve(parrot=slow, max_num_seqs=1, queue_timeout=0.2) as server:
        for stream in (False, True):
            with _busy(server, 1):
                refused = server.complete("late", stream=stream)
                assert server.on_loop(server.engine.stats).num_waiting == 0
            assert (refused.status_code, assert_envelope(refused)["code"]) == (503, "queue_timeout")
            assert refused.headers["Retry-After"]
        assert tuple(b"late") not in server.prompts()


def time_in_all(serve: Serve) -> None:
    """A stream that takes too long ends with an error."""
    with serve(parrot=Parrot(step_time_s=0.005), request_timeout=1.2) as server:
        answer = server.complete("long", stream=True, max_tokens=500, early_exit={"enabled": False})
        *pieces, last, done = [line for line in answer.text.splitlines() if line]
        assert len(pieces) > 2
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        assert done == "data: [DONE]"
        whole = server.complete("long", max_tokens=500, early_exit={"enabled": False})
        assert (whole.status_code, assert_envelope(whole)["code"]) == (504, "timeout")


def what_never_fits(serve: Serve) -> None:
    """A request that needs more blocks than there are is refused, not queued."""
    with serve(parrot=Parrot(num_blocks=8)) as server:
        started = time.monotonic()
        for path, prompt, param in (
            (COMPLETIONS, {"prompt": "a" * 100}, "prompt"),
            (COMPLETIONS, {"prompt": "a", "max_tokens": 100}, "prompt"),
            (CHAT, {"messages": [{"role": "user", "content": "a" * 100}]}, "messages"),
        ):
            answer = server.ask(path, {"model": MODEL, **prompt})
            assert_refused(answer, Case(path, b"", param, "context_length_exceeded"))
        assert time.monotonic() - started < 2
        assert len(server.text("a" * 24, max_tokens=40)) == 40


def a_tenth_of_the_memory(serve: Serve) -> None:
    """Fifty long requests, where five fit in memory, all finish with their own texts."""
    parrot = Parrot(num_blocks=75)
    with serve(parrot=parrot, max_num_seqs=50) as server:
        prompts = [f"{number:02}" * 10 for number in range(50)]
        with ThreadPoolExecutor(50) as pool:
            texts = list(pool.map(lambda text: server.text(text, max_tokens=100), prompts))
        assert texts == [parrot.text_after(prompt, 100) for prompt in prompts]
        stats = server.on_loop(server.engine.stats)
        assert 0 < stats.preemptions_total < 5 * len(prompts)


def idle_connections(serve: Serve) -> None:
    """Beyond the limit on connections only probes and metrics are answered."""
    with serve(max_connections=100) as server, ExitStack() as crowd:
        for _ in range(100):
            crowd.enter_context(connection(server))
        time.sleep(0.1)
        _assert_overloaded(server.complete("late"))
        for path in ("/health", "/ready", "/metrics") * 10:
            started = time.monotonic()
            assert server.client.get(path).status_code == 200
            assert time.monotonic() - started < 1
        crowd.close()
        while server.complete("canary").status_code != 200:
            time.sleep(0.02)


def _assert_some_refused(server: TableServer) -> None:
    prompts = [f"number {number:02}" for number in range(20)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(server.complete, prompts))
    served = [
        (prompt, answer.json()["choices"][0]["text"])
        for prompt, answer in zip(prompts, answers, strict=True)
        if answer.status_code == 200
    ]
    assert 0 < len(served) < len(prompts)
    assert served == [(prompt, server.parrot.text_after(prompt, 32)) for prompt, _ in served]
    for answer in answers:
        if answer.status_code != 200:
            _assert_overloaded(answer)


def _assert_overloaded(answer: httpx.Response) -> None:
    error = assert_envelope(answer)
    assert answer.status_code == 503
    assert (error["type"], error["code"]) == ("service_unavailable_error", "server_is_overloaded")
    assert 1 <= int(answer.headers["Retry-After"]) <= 120


@contextmanager
def _busy(server: TableServer, count: int) -> Iterator[None]:
    """Keep `count` requests open in the meantime, and then let them finish."""
    before, server.parrot.step_time_s = server.parrot.step_time_s, _ALMOST_NOTHING
    with ThreadPoolExecutor(count) as pool:
        exits = {"enabled": False}
        asked: list[Future[httpx.Response]] = [
            pool.submit(server.complete, f"busy {number}", max_tokens=100, early_exit=exits)
            for number in range(count)
        ]
        while server.on_loop(lambda: server.engine.num_unread) < count:
            time.sleep(0.002)
        yield
        assert not any(each.done() for each in asked), "they have to be there all the while"
        server.parrot.step_time_s = 0.0
        assert all(each.result().status_code == 200 for each in asked)
    server.parrot.step_time_s = before
