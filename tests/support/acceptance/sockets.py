"""Requests written byte by byte, as no client library would send them."""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping

from acceptance.table_server import TableServer

HEAD = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@contextlib.contextmanager
def connection(server: TableServer) -> Iterator[socket.socket]:
    """Open a connection without sending anything."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        yield sock


def send(sock: socket.socket, path: str, body: Mapping[str, object]) -> None:
    """Send a whole request."""
    content = json.dumps(body).encode()
    length = b"Content-Length: %d\r\n\r\n" % len(content)
    sock.sendall(HEAD % path.encode() + length + content)


def hang_up(sock: socket.socket) -> None:
    """Close at once with a reset, as happens when a process is killed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def reply(sock: socket.socket) -> tuple[int, bytes]:
    """Return status and body, read until the server closes; (0, b"") if it sent nothing."""
    content = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            content += piece
    return (int(content.split()[1]), content.partition(b"\r\n\r\n")[2]) if content else (0, b"")


def status_of(server: TableServer, target: bytes, *headers: bytes, method: bytes = b"GET") -> int:
    """Return the status of a request with a target that no library would send."""
    lines = [b"%b %b HTTP/1.1" % (method, target), *headers, b"Connection: close", b"", b""]
    with connection(server) as sock:
        sock.sendall(b"\r\n".join(lines))
        return reply(sock)[0]


def resident_bytes() -> int:
    """Return the resident memory of this process, which includes the server."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def wait_until_closed(sock: socket.socket, timeout_s: float) -> float:
    """Return the seconds until the server closes.

    Raises:
        TimeoutError: if it does not.
    """
    started = time.monotonic()
    sock.settimeout(timeout_s)
    with contextlib.suppress(ConnectionError):
        while sock.recv(65536):
            pass
    return time.monotonic() - started
