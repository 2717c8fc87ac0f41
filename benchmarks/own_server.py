"""Starts `adadecode serve` on a free port, for benchmarks that harm the server or its worker."""

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from training.flag_types import output_file

if TYPE_CHECKING:
    from httpx import AsyncClient

_WORKER_MODULE = b"engine.worker.main"
_READY_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 60.0
_CACHE = "ADADECODE_CACHE"  # the one variable of this name that is no setting
_LOOK_S = 0.1  # between two polls, which must not take CPU time from a starting worker


class OwnServer:
    """A running server process. Linux only, since its worker is found in /proc."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str) -> None:
        self.url = url
        self._process = process

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    @property
    def worker_pid(self) -> int | None:
        """The process id of its worker; None while there is none."""
        for directory in Path("/proc").iterdir():
            if directory.name.isdigit() and self._is_worker(directory):
                return int(directory.name)
        return None

    @property
    def rss_bytes(self) -> int:
        """Resident memory of the server process, not of its worker; 0 once it has ended."""
        try:
            resident = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        except OSError:
            return 0
        return int(resident) * os.sysconf("SC_PAGE_SIZE")

    def require_alive(self) -> None:
        """Check that the server is running.

        Raises:
            ValueError: if it has ended.
        """
        status = self._process.poll()
        if status is not None:
            raise ValueError(f"the server ended with status {status}")

    def _is_worker(self, directory: Path) -> bool:
        try:
            state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (directory / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            return False
        return int(parent) == self._process.pid and state != "Z" and _WORKER_MODULE in command


@contextmanager
def own_server(flags: Sequence[str]) -> Iterator[OwnServer]:
    """Start a server, and stop it in the end; `until_ready` waits until it is ready.

    Settings in this process's environment are not the server's, whose clients send no key.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "server.cli", "serve", *flags, "--port", str(port)]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == _CACHE or not name.startswith("ADADECODE_")
    }
    with _ending_at_sigterm():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        try:
            yield OwnServer(process, f"http://127.0.0.1:{port}")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _ending_at_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that this process stops its server before it ends."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@asynccontextmanager
async def ready_server(flags: Sequence[str]) -> AsyncIterator[tuple[OwnServer, "AsyncClient"]]:
    """Start a server and wait until it is ready; yield it and a client with a long timeout.

    Raises:
        ValueError: if the server ends, or takes too long to load.
    """
    import httpx

    patient = httpx.Timeout(3600, connect=10)
    limits = httpx.Limits(max_connections=None)
    with own_server(["--log-level", "error", *flags]) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=patient, limits=limits) as client:
            await until_ready(client, server)
            yield server, client


async def until_ready(client: "AsyncClient", server: OwnServer) -> bool:
    """Wait until the server is ready; return whether /health never failed meanwhile.

    Raises:
        ValueError: if the server ends, or takes too long.
    """
    import httpx

    is_alive = True
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < deadline:
        server.require_alive()
        try:
            if (await client.get("/ready")).status_code == 200:
                return is_alive
            is_alive = is_alive and (await client.get("/health")).status_code == 200
        except httpx.ConnectError:  # it does not listen yet
            pass
        except httpx.TransportError:  # it has just ended
            is_alive = False
        await asyncio.sleep(_LOOK_S)
    raise ValueError(f"the server was not ready after {_READY_TIMEOUT_S:g} s")


async def until_recovered(client: "AsyncClient", server: OwnServer) -> bool:
    """Wait until the server notices the loss of its worker, and then like `until_ready`."""
    while (await client.get("/ready")).status_code == 200:
        await asyncio.sleep(0.01)
    return await until_ready(client, server)


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of every benchmark that starts its own server."""
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure")
    parser.add_argument(
        "--serve-flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="flag of the server; repeat for several",
    )
