"""Rows 7 to 14: what is decided before a body is parsed, or without one."""

import contextlib
import gzip
import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

from fastapi.routing import iter_route_contexts

from acceptance.refusals import Case, assert_envelope, assert_refused
from acceptance.sockets import HEAD, connection, reply, resident_bytes, status_of, wait_until_closed
from acceptance.table_server import CANARY, COMPLETIONS, Serve, TableServer
from server.routes.ui import PAGE_PATHS

_KEY = "sk-Right-Key"
_OPEN = {"/health", "/ready", "/ping"}
_GUARDED = {"api_key": [_KEY, "sk-other"], "headers": {"Authorization": f"Bearer {_KEY}"}}
_LIMIT = 1_000_000


def content_types(serve: Serve) -> None:
    """Only plain JSON is read; a compressed body is never unpacked."""
    bomb = gzip.compress(b" " * 50_000_000)
    with serve() as server:
        before = resident_bytes()
        for headers in (
            {},
            {"Content-Type": "text/plain"},
            {"Content-Type": "multipart/form-data; boundary=x"},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        ):
            answer = server.client.post(COMPLETIONS, content=bomb, headers=headers)
            case = Case(COMPLETIONS, b"bomb", code="unsupported_media_type", status=415)
            assert_refused(answer, case)
        assert resident_bytes() - before < 20_000_000


def large_bodies(serve: Serve) -> None:
    """Large bodies are refused by their length header, or once they exceed the limit."""
    case = Case(COMPLETIONS, b"large", code="request_too_large", status=413)
    content = json.dumps({**CANARY, "prompt": "x" * _LIMIT}).encode()
    limits = {"head_timeout_s": 0.5}  # how long the rest of a refused body is awaited
    with serve(max_request_bytes=_LIMIT, limits=limits) as server:
        assert_refused(server.ask(COMPLETIONS, content), case)
        pieces = [content[at : at + 65536] for at in range(0, len(content), 65536)]
        headers = {"Content-Type": "application/json"}
        assert_refused(server.client.post(COMPLETIONS, content=iter(pieces), headers=headers), case)
        before = resident_bytes()
        assert _flood(server, b"10000\r\n" + b"x" * 65536 + b"\r\n", 1000) in (413, 0)
        assert resident_bytes() - before < 2 * _LIMIT


def large_heads(serve: Serve) -> None:
    """Large or many headers and floods of tiny chunks end their connection, and cost nothing."""
    with serve() as server:
        before = resident_bytes()
        for size in (70_000, 200_000, 2_000_000):
            with connection(server) as sock:
                with contextlib.suppress(OSError):
                    sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * size)
                    sock.sendall(b"\r\n\r\n")
                assert reply(sock)[0] in (431, 0)
        many = [b"x%d: 1" % number for number in range(500)]
        assert status_of(server, b"/health", b"Host: x", *many) == 431
        assert _flood(server, b"1\r\n \r\n" * 1000, 1000) in (400, 0)
        assert resident_bytes() - before < 8_000_000


def slow_clients(serve: Serve) -> None:
    """Heads and bodies that drip in are cut off in time; others are served meanwhile as before."""
    limits = {"head_timeout_s": 0.5}
    head = HEAD % COMPLETIONS.encode() + b"Content-Length: 1000\r\n\r\n"
    with (
        patch("server.body._RECEIVE_TIMEOUT_S", 0.5),
        serve(limits=limits) as server,
        contextlib.ExitStack() as crowd,
    ):
        slow = [crowd.enter_context(connection(server)) for _ in range(1000)]
        for number, sock in enumerate(slow):
            sock.sendall(head[: 5 + number % 50] if number % 2 else head + b"{")
        times = []
        for _ in range(10):
            started = time.monotonic()
            assert server.ask(COMPLETIONS, CANARY).status_code == 200
            times.append(time.monotonic() - started)
        assert statistics.median(times) < 0.3
        assert max(wait_until_closed(sock, 5) for sock in slow) < 5


def odd_targets(serve: Serve) -> None:
    """However a path is written, a key is required."""
    targets = (b"http://a/v1/models", b"//v1/models", b"/v1/../health", b"/health/../v1/models")
    targets += (b"/%2e%2e/v1/models", b"/v1/%2e/models", b"/health%2f..%2fv1%2fmodels", b"/health/")
    with serve(**_GUARDED) as server:
        for host in (b"x", b"a/v1/models?", b"localhost/health", b"a/health#"):
            for target in (b"/v1/models", *targets):
                status = status_of(server, target, b"Host: " + host)
                assert status in (400, 401), (host, target, status)
        assert status_of(server, b"/v1/models", b"Host: x") == 401


def unknown_routes(serve: Serve) -> None:
    """404 and 405 have OpenAI's error envelope too."""
    with serve() as server:
        for method, path, status, code in (
            ("GET", "/nowhere", 404, "not_found"),
            ("POST", "/v1/nothing", 404, "not_found"),
            ("GET", COMPLETIONS, 405, "method_not_allowed"),
            ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ):
            answer = server.client.request(method, path)
            assert answer.status_code == status
            assert assert_envelope(answer)["code"] == code


def keys(serve: Serve) -> None:
    """Without a valid key, only the probes and the page's files can be reached."""
    wrong = (None, "", "Bearer", f"Bearer {_KEY.lower()}", f"Bearer {_KEY[:-1]}")
    wrong += (f"Bearer {_KEY}x", f"Basic {_KEY}", _KEY, b"Bearer \xff\xfe")
    with serve(**_GUARDED) as server:
        for value in wrong:
            headers = {"Authorization": value or ""}
            answer = server.client.get("/v1/models", headers=headers)
            error = assert_envelope(answer)
            assert answer.status_code == 401
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        opened = {
            path
            for method, path in _routes(server)
            if server.client.request(method, path, headers={"Authorization": ""}).status_code != 401
        }
        assert _OPEN <= opened <= _OPEN | set(PAGE_PATHS)


def request_ids(serve: Serve) -> None:
    """A client's request id is echoed if it is safe, and never used as the engine's."""
    sent = ("x" * 5000, "%0D%0Aevil", "a b\tc", "é☃".encode())
    with serve() as server:
        for value in sent:
            answer = server.client.get("/health", headers={"X-Request-Id": value})
            echoed = answer.headers["X-Request-Id"]
            assert 0 < len(echoed) <= 128
            assert echoed.isascii()
            assert echoed.isprintable()
        status = status_of(server, b"/health", b"Host: x", b"X-Request-Id: a\r\n b\rc")
        assert status in (200, 400)
        with ThreadPoolExecutor() as pool:
            headers = {"X-Request-Id": "same"}
            bodies = [{**CANARY, "prompt": text, "max_tokens": 100} for text in ("one", "two")]
            both = list(
                pool.map(lambda b: server.client.post(COMPLETIONS, json=b, headers=headers), bodies)
            )
        assert [answer.headers["X-Request-Id"] for answer in both] == ["same"] * 2
        texts = [answer.json()["choices"][0]["text"] for answer in both]
        assert texts == [server.text(text, max_tokens=100) for text in ("one", "two")]


def _routes(server: TableServer) -> Iterator[tuple[str, str]]:
    for route in iter_route_contexts(server.app.routes):
        if route.path:
            for method in route.methods or {"GET"}:
                yield method, route.path
    for path in ("/nowhere", "/health/x", "/healthz", "/openapi.json", "/docs"):
        yield "GET", path


def _flood(server: TableServer, chunk: bytes, count: int) -> int:
    """Send chunks of a body until the server closes; return its status."""
    with connection(server) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(HEAD % COMPLETIONS.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(count):
                sock.sendall(chunk)
        return reply(sock)[0]
