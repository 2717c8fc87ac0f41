"""Rows 52 and 54: rows that cannot be computed, and workers that die."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

from fake_worker import KILLER_ID, POISON_ID
from live_server import MODEL

from acceptance.parrot import Parrot
from acceptance.refusals import assert_envelope
from acceptance.table_server import COMPLETIONS, Serve, TableServer, streamed_text


def one_row(serve: Serve) -> None:
    """A request that cannot be computed ends with an error of its own, and is never cached."""
    poison = [POISON_ID, *b"0123456789abcdef" * 2]
    with serve() as server:
        before = server.on_loop(server.engine.stats).prefix_cache_hits_total
        for _ in range(2):
            _assert_failed(server, poison)
        stats = server.on_loop(server.engine.stats)
        assert stats.prefix_cache_hits_total == before, "its blocks were found again"


def a_killer(serve: Serve) -> None:
    """A request that kills workers is found and named; others beside it get their text."""
    with serve(parrot=Parrot(step_time_s=0.002)) as server, ThreadPoolExecutor(4) as pool:
        server.allowed_errors |= {"engine.supervisor"}
        prompts = [f"beside {number}" for number in range(3)]
        beside = [pool.submit(server.text, prompt, max_tokens=80) for prompt in prompts]
        _assert_failed(server, [KILLER_ID, 5])
        for prompt, text in zip(prompts, beside, strict=True):
            assert text.result() == server.parrot.text_after(prompt, 80)


def deaths_of_workers(serve: Serve) -> None:
    """Streams continue with the next worker, token for token; only /ready shows the restart."""
    prompts = [f"stream {number}" for number in range(6)]
    with serve(parrot=Parrot(step_time_s=0.004)) as server, ThreadPoolExecutor(8) as pool:
        server.allowed_errors |= {"engine.supervisor"}
        server.worker.load_time_s = 0.2
        right = [server.parrot.text_after(prompt, 100) for prompt in prompts]
        streams = [pool.submit(_stream, server, prompt) for prompt in prompts]
        for _ in range(2):
            while server.on_loop(server.engine.stats).num_running < 6:
                time.sleep(0.001)
            time.sleep(0.05)
            server.on_loop(server.worker.death.set)
            while server.client.get("/ready").status_code == 200:
                time.sleep(0.001)
            assert server.client.get("/ready").json() == {"status": "recovering"}
            assert server.client.get("/health").status_code == 200
        late = pool.submit(server.text, "late", max_tokens=10)  # is queued, not refused
        assert [stream.result() for stream in streams] == right
        assert late.result() == server.parrot.text_after("late", 10)
        assert server.client.get("/ready").status_code == 200
        assert server.on_loop(server.engine.stats).worker_restarts_total == 2


def _stream(server: TableServer, prompt: str) -> str:
    return streamed_text(server.complete(prompt, stream=True, max_tokens=100).text)


def _assert_failed(server: TableServer, prompt: list[int]) -> None:
    """Assert that a request, whole and streamed, fails with an error that clients do not retry."""
    whole = server.complete(prompt)
    error = assert_envelope(whole)
    assert (whole.status_code, error["type"]) == (500, "server_error")
    assert error["code"] == "request_failed"
    assert whole.headers["x-should-retry"] == "false"
    body = {"model": MODEL, "prompt": prompt, "stream": True}
    streamed = server.ask(COMPLETIONS, body)
    if streamed.status_code == 200:  # the failure came after the first bytes
        *_, last, done = [line for line in streamed.text.splitlines() if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "request_failed"
        assert done == "data: [DONE]"
    else:
        assert assert_envelope(streamed)["code"] == "request_failed"
