"""Limits on requests: a full queue, the share of one key, and deadlines."""

import threading
import time

import httpx
import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app, serving

from engine.errors import EngineOverloaded
from server.admission import _key_of

BODY = {"model": MODEL, "prompt": "a", "max_tokens": 5}


class FullEngine(FakeEngine):
    def check_room(self, num_requests: int = 1, num_tokens: int = 0) -> None:
        raise EngineOverloaded("full", retry_after_s=7)


def test_a_full_queue_refuses_before_the_body_is_read():
    with serving(fake_app(FullEngine())) as url:
        started = time.monotonic()
        refused = httpx.post(f"{url}/v1/completions", content=b"{" * 3_000_000)
        took_s = time.monotonic() - started
        others = [httpx.get(f"{url}/{path}").status_code for path in ("v1/models", "metrics")]

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert refused.json()["error"]["type"] == "service_unavailable_error"
    assert refused.headers["Retry-After"] == "7"
    assert took_s < 5, "a busy machine; the acceptance table asks for less"
    assert others == [200, 200]


def test_each_key_has_its_share(engine):
    engine.token_delay_s = 1.0  # keeps the first two open until a third has been sent
    app = fake_app(engine, api_key=["a", "b"], max_concurrent_per_key=2)
    with serving(app) as url:

        def ask(key: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {key}"}
            return httpx.post(f"{url}/v1/completions", json=BODY, headers=headers)

        open_ones = [threading.Thread(target=ask, args=("a",)) for _ in range(2)]
        for thread in open_ones:
            thread.start()
        while len(engine.open_ids) < 2:
            time.sleep(0.01)
        refused = ask("a")
        engine.token_delay_s = 0.0
        other = ask("b")
        for thread in open_ones:
            thread.join()
        again = ask("a")

    error = refused.json()["error"]
    assert (refused.status_code, error["type"]) == (429, "rate_limit_error")
    assert error["code"] == "rate_limit_exceeded"
    assert refused.headers["Retry-After"]
    assert (other.status_code, again.status_code) == (200, 200)


def test_without_keys_each_address_has_its_share_whatever_the_connection():
    connections = [{"client": (host, port)} for host, port in [("::1", 1), ("::1", 2), ("::2", 1)]]
    first, second, other = map(_key_of, connections)

    assert first == second != other


@pytest.mark.parametrize("stream", [False, True])
def test_the_total_deadline(engine, stream):
    engine.token_delay_s = 0.4
    with serving(fake_app(engine, request_timeout=0.6)) as url:
        answer = httpx.post(f"{url}/v1/completions", json={**BODY, "stream": stream})

    if stream:
        *_, error, done = [line for line in answer.text.splitlines() if line]
        assert '"code":"timeout"' in error
        assert done == "data: [DONE]"
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert len(engine.aborted) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_time_in_the_queue_is_limited(monkeypatch, engine, stream):
    engine.token_delay_s = 30
    monkeypatch.setattr(FakeEngine, "has_started", lambda *_: False)
    app = fake_app(engine, queue_timeout=0.3, sse_keep_alive_interval=0.1)
    with serving(app) as url:  # a stream waits for its turn longer than for a comment
        answer = httpx.post(f"{url}/v1/completions", json={**BODY, "stream": stream})

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "queue_timeout")
    assert answer.headers["Retry-After"]
    assert len(engine.aborted) == 1


def test_who_has_had_a_turn_is_not_ended_by_the_queues_limit(engine):
    engine.token_delay_s = 0.3
    with serving(fake_app(engine, queue_timeout=0.1)) as url:
        assert httpx.post(f"{url}/v1/completions", json=BODY).status_code == 200
