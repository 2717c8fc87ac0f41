"""Servers to talk to as a client would: one around a fake engine, one with the default model."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine
from live_server import fake_app, serving

ROOT = Path(__file__).parents[2]
_START_TIMEOUT_S = 600.0  # the first start converts the model; CI machines are slow


@pytest.fixture(scope="session", params=["fake", pytest.param("real", marks=pytest.mark.model)])
def server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server."""
    if request.param == "fake":
        with serving(fake_app(FakeEngine())) as url:
            yield url
    else:
        yield request.getfixturevalue("real_server_url")


@pytest.fixture(scope="session")
def real_server_url() -> Iterator[str]:
    """The address of `adadecode serve` with the default model, in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(process, url)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended instead of serving"
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not ready after {_START_TIMEOUT_S:.0f} s")
