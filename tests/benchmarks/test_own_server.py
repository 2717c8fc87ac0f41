"""A benchmark that is stopped also stops its server, and notices when that ends by itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from liveness import is_alive, wait_until

from benchmarks import own_server
from benchmarks.own_server import OwnServer, until_ready

ROOT = Path(__file__).parents[2]
SCRIPT = """
import asyncio
from benchmarks.own_server import own_server

async def main():
    with own_server([]) as server:
        print(server.pid, flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_sigterm_ends_the_server_too() -> None:
    command = [sys.executable, "-c", SCRIPT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as benchmark:
        assert benchmark.stdout is not None
        pid = int(benchmark.stdout.readline())
        assert is_alive(pid)
        benchmark.send_signal(signal.SIGTERM)
        assert benchmark.wait(timeout=60) == 128 + signal.SIGTERM
    wait_until(lambda: not is_alive(pid))


async def test_a_server_that_ends_while_it_loads_is_said_so() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(input() or 3)"],
                               stdin=subprocess.PIPE)  # fmt: skip

    def hang_up(request: httpx.Request) -> httpx.Response:
        process.communicate(b"\n")
        raise httpx.ReadError("hung up", request=request)

    client = httpx.AsyncClient(base_url="http://x", transport=httpx.MockTransport(hang_up))
    with pytest.raises(ValueError, match="the server ended with status 3"):
        await until_ready(client, OwnServer(process, "http://x"))


def test_settings_of_this_process_are_not_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended:
        def __init__(self, command: list[str], **options: object) -> None:
            given.update(options)

        def send_signal(self, number: int) -> None: ...

        def wait(self, timeout_s: float) -> None: ...

    given: dict[str, object] = {}
    monkeypatch.setenv("ADADECODE_API_KEY", "k")
    monkeypatch.setenv("ADADECODE_CACHE", "/cache")
    monkeypatch.setattr(own_server.subprocess, "Popen", Ended)
    with own_server.own_server([]):
        environment = given["env"]

    assert isinstance(environment, dict)
    assert "ADADECODE_API_KEY" not in environment
    assert environment["ADADECODE_CACHE"] == "/cache"
    assert environment["PATH"]
