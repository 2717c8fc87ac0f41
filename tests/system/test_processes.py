"""How the processes of server and worker end; neither may outlive the other."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from liveness import DEADLINE_S, is_alive, wait_until

pytestmark = [pytest.mark.model, pytest.mark.slow]  # the model is needed for its tokenizer

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"


@dataclass(frozen=True)
class Processes:
    """A server, and the file where its first worker writes its process id."""

    server: "subprocess.Popen[str]"
    url: str
    pid_file: Path

    @property
    def worker_pid(self) -> int:
        """The first worker's process id; waits until it has started."""
        wait_until(lambda: self.pid_file.exists() and self.pid_file.read_text() != "")
        return int(self.pid_file.read_text())

    def wait_until_ready(self) -> None:
        """Wait until the first worker has loaded."""
        wait_until(lambda: status_of(self.url) == 200)


@contextmanager
def processes(directory: Path, **environment: str) -> Iterator[Processes]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    pid_file = directory / "pid"
    command = [sys.executable, str(SUPPORT / "light_serve.py"), "--port", str(port)]
    paths = os.pathsep.join((str(ROOT), str(SUPPORT)))
    variables = {"PYTHONPATH": paths, "LIGHT_WORKER_PID": str(pid_file), **environment}
    server = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True
    )
    try:
        yield Processes(server, f"http://127.0.0.1:{port}", pid_file)
    finally:
        server.kill()
        server.communicate()


def status_of(url: str) -> int:
    try:
        return httpx.get(f"{url}/ready").status_code
    except httpx.TransportError:
        return 0


def test_workers_that_die_at_every_start_end_the_server_and_it_says_why(tmp_path: Path) -> None:
    with processes(tmp_path) as running:
        running.wait_until_ready()
        os.kill(running.worker_pid, signal.SIGKILL)
        _, errors = running.server.communicate(timeout=DEADLINE_S)
    assert running.server.returncode == 1
    assert errors.splitlines()[-1] == (
        "adadecode serve: 6 workers in a row were lost before any request got further; the last "
        "one: while loading the model, the worker process ended (exit status 3)"
    )
    assert "Traceback" not in errors


def test_sigterm_ends_both(tmp_path: Path) -> None:
    with processes(tmp_path) as running:
        running.wait_until_ready()
        pid = running.worker_pid
        running.server.send_signal(signal.SIGTERM)
        assert running.server.wait(DEADLINE_S) == 0
        assert not is_alive(pid)


def test_a_worker_that_loads_does_not_outlive_a_killed_server(tmp_path: Path) -> None:
    with processes(tmp_path, LIGHT_WORKER_LOADS_S="1000") as running:
        pid = running.worker_pid
        assert is_alive(pid)
        running.server.kill()
        wait_until(lambda: not is_alive(pid))
