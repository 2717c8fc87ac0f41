"""How a server drains at signals and how it listens, mostly in a process of its own."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app

from server import http_server
from server.http_protocol import ConnectionLimits
from server.http_server import CannotListen, DrainingServer, listen
from server.settings import ServerSettings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
BODY = {"model": MODEL, "prompt": "a", "stream": True, "max_tokens": 20}


@contextlib.contextmanager
def server_process(
    drain_s: float, token_delay_s: float = 0.05
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            str(SUPPORT / "fake_serve.py"),
            str(port),
            str(drain_s),
            str(token_delay_s),
        ],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{SUPPORT}"},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, "ready")
        yield process, url
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_for(url: str, status: str) -> None:
    for _ in range(400):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/ready").json() == {"status": status}:
                return
        time.sleep(0.05)
    raise AssertionError(f"the server did not get {status}")


def data(lines: Iterator[str]) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def test_at_sigterm_open_requests_finish_and_new_ones_are_refused():
    with (
        server_process(drain_s=30, token_delay_s=0.2) as (process, url),
        httpx.stream("POST", f"{url}/v1/completions", json=BODY) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        wait_for(url, "stopping")
        refused = httpx.post(f"{url}/v1/completions", json=BODY)
        events = data(lines)
        status = process.wait(timeout=30)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert refused.headers["Retry-After"]
    assert json.loads(events[-2])["choices"][0]["finish_reason"] == "stop"
    assert events[-1] == "[DONE]"
    assert status == 0


@pytest.mark.parametrize("drain_s", [0, 0.2])
def test_what_outlives_the_drain_ends_with_an_error(drain_s):
    with (
        server_process(drain_s, token_delay_s=0.2) as (process, url),
        httpx.stream("POST", f"{url}/v1/completions", json=BODY) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        events = data(lines)
        status = process.wait(timeout=30)

    assert json.loads(events[-2])["error"]["code"] == "shutting_down"
    assert events[-1] == "[DONE]"
    assert status == 0


def test_a_second_signal_does_not_wait():
    with (
        server_process(drain_s=60, token_delay_s=1) as (process, url),
        httpx.stream("POST", f"{url}/v1/completions", json=BODY) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        wait_for(url, "stopping")
        process.send_signal(signal.SIGINT)
        events = data(lines)
        assert process.wait(timeout=30) == 0

    assert json.loads(events[-2])["error"]["code"] == "shutting_down"


@pytest.fixture
def _heeded_hangup():
    """SIGHUP has its usual meaning, even if the tests run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_heeded_hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_idle_server_stops_at_once(number):
    with server_process(drain_s=60) as (process, _):
        process.send_signal(number)
        assert process.wait(timeout=30) == 0


@pytest.mark.usefixtures("_heeded_hangup")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_the_application_is_made_ends_the_server_as_later_ones_do(number):
    engine = FakeEngine()
    app = fake_app(engine)

    async def make():
        signal.raise_signal(number)
        return app

    context = app.state.context
    with listen("127.0.0.1", 0) as listener:
        DrainingServer(make(), context.service, context.settings).run(sockets=[listener])

    assert engine.is_stopped


async def test_an_idle_server_looks_up_now_and_then_and_at_every_signal(monkeypatch):
    context = fake_app(FakeEngine()).state.context
    server = DrainingServer(None, context.service, context.settings)
    looks = []

    async def on_tick(counter):
        looks.append(counter)
        if len(looks) == 2:  # from now on only signals wake it
            monkeypatch.setattr(http_server, "_LOOK_S", 1000.0)
        return server._num_signals > 1

    async def until(count):
        async with asyncio.timeout(30):
            while len(looks) < count:
                await asyncio.sleep(0.001)

    assert http_server._LOOK_S == 1.0
    monkeypatch.setattr(server, "on_tick", on_tick)
    monkeypatch.setattr(http_server, "_LOOK_S", 0.01)
    running = asyncio.create_task(server.main_loop())
    await until(2)
    server.handle_exit(signal.SIGTERM, None)
    await until(3)
    server.handle_exit(signal.SIGTERM, None)
    await asyncio.wait_for(running, 30)
    assert looks == [0, 10, 20, 30]


def test_small_pieces_of_an_answer_are_sent_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_all_connections_that_one_turn_accepts_find_a_free_file(monkeypatch):
    monkeypatch.setattr(http_server.resource, "getrlimit", lambda _: (4096, 4096))
    config = http_server.uvicorn_config(fake_app(FakeEngine()), ServerSettings())
    limits: ConnectionLimits = config.http.keywords["limits"]

    assert limits.max_connections + config.backlog + 128 < 4096


def test_a_port_in_use_is_said_so():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen, match=f"port {port} on 127.0.0.1 is in use"):
            listen("127.0.0.1", port)


def test_a_foreign_address_is_said_so():
    with pytest.raises(CannotListen, match=r"cannot listen on 192\.0\.2\.1:8000"):
        listen("192.0.2.1", 8000)
