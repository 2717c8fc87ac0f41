"""What slow, large, chopped-up and too many connections may cost, on real sockets."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator

import h11
import httpx
import pytest
import uvicorn
from fake_engine import FakeEngine
from live_server import MODEL, fake_app, serving
from uvicorn.server import ServerState

from server.http_protocol import BoundedProtocol, ConnectionLimits, _BoundedConnection

BODY = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 3}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@contextlib.contextmanager
def connection(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as sock:
        yield sock


def answer(sock: socket.socket) -> tuple[int, bytes]:
    """Return the status and all bytes until the server closes; (0, b"") if it sends nothing."""
    content = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            content += piece
    return (int(content.split()[1]), content) if content else (0, b"")


def error_code(content: bytes) -> str:
    code: str = json.loads(content.partition(b"\r\n\r\n")[2])["error"]["code"]
    return code


def patch_limits(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    from server import http_server

    real = http_server.ConnectionLimits
    monkeypatch.setattr(http_server, "ConnectionLimits", lambda **kw: real(**{**kw, **limits}))


def test_a_head_that_drips_in_is_cut_off(monkeypatch):
    patch_limits(monkeypatch, head_timeout_s=0.4)
    with serving(fake_app(FakeEngine())) as url, connection(url) as sock:
        started = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in HEAD:
                sock.sendall(bytes([byte]))
                time.sleep(0.05)
                if time.monotonic() - started > 1:
                    break
        status, content = answer(sock)
        assert httpx.get(f"{url}/health").status_code == 200

    assert (status, error_code(content)) == (408, "request_timeout")


def test_a_connection_that_says_nothing_is_closed(monkeypatch):
    patch_limits(monkeypatch, head_timeout_s=0.2)
    with serving(fake_app(FakeEngine())) as url, connection(url) as sock:
        assert answer(sock) == (0, b"")


def test_an_answered_request_whose_body_drips_on_is_cut_off(monkeypatch):
    patch_limits(monkeypatch, head_timeout_s=0.3)
    with serving(fake_app(FakeEngine(), api_key=["k"])) as url, connection(url) as sock:
        sock.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        assert b"401" in sock.recv(65536)
        started = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - started < 5:
                sock.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - started < 4, "the server has closed"


def test_a_body_that_drips_in_is_answered_408(monkeypatch):
    monkeypatch.setattr("server.body._RECEIVE_TIMEOUT_S", 0.3)
    with serving(fake_app(FakeEngine())) as url, connection(url) as sock:
        sock.sendall(HEAD + b"Content-Length: 1000\r\nConnection: close\r\n\r\n{")
        status, content = answer(sock)

    assert (status, error_code(content)) == (408, "request_timeout")


@pytest.mark.parametrize("size", [70_000, 200_000, 2_000_000])
def test_large_heads_are_refused(live_url, size):
    with connection(live_url) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * size + b"\r\n\r\n")
        status, _ = answer(sock)

    assert status in (431, 0), "answered, or reset while it was still sending"
    assert httpx.get(f"{live_url}/health").status_code == 200


def test_many_headers_are_refused_by_name(live_url):
    headers = b"".join(b"x%d: 1\r\n" % number for number in range(500))
    with connection(live_url) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        status, content = answer(sock)

    assert (status, error_code(content)) == (431, "headers_too_large")


def test_a_flood_of_tiny_chunks_is_refused_and_ordinary_chunks_are_not(live_url, engine):
    with connection(live_url) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 100_000)
        status, _ = answer(sock)
    pieces = [bytes([byte]) for byte in BODY]
    served = httpx.post(
        f"{live_url}/v1/completions",
        content=iter(pieces),
        headers={"Content-Type": "application/json"},
    )

    assert status in (400, 0)
    assert served.status_code == 200
    assert len(engine.requests) == 1


@pytest.mark.parametrize("content", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02"])
def test_what_is_no_http_is_answered_in_the_envelope_or_closed(live_url, monkeypatch, content):
    with connection(live_url) as sock:
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)
        status, body = answer(sock)

    assert status in (400, 0)
    assert not body or error_code(body) == "invalid_http"


def test_garbage_behind_an_answered_request_only_closes(live_url):
    with connection(live_url) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in sock.recv(65536)
        sock.sendall(b"\x00\x01 garbage\r\n\r\n")
        status, _ = answer(sock)

    assert status in (400, 0)


def test_requests_that_come_together_are_answered_one_after_the_other(live_url):
    length = b"Content-Length: %d\r\n\r\n" % len(BODY)
    with connection(live_url) as sock:
        sock.sendall(
            b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
            + (HEAD + length + BODY)
            + b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        _, content = answer(sock)

    heads = [part for part in content.split(b"HTTP/1.1 ") if part]
    assert [head[:3] for head in heads] == [b"200", b"200", b"404"]
    assert b'"text_completion"' in heads[1]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_an_upgrade_is_ignored_without_a_word(live_url, caplog, protocol):
    upgrade = b"Connection: Upgrade\r\nUpgrade: %b\r\nContent-Length: %d\r\n\r\n"
    again = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with connection(live_url) as sock:
        sock.sendall(HEAD + upgrade % (protocol, len(BODY)) + BODY + again)
        status, content = answer(sock)

    assert status == 200
    assert content.count(b"HTTP/1.1 200 OK") == 2
    assert not [each for each in caplog.records if each.levelname == "WARNING"]


def test_beyond_the_limit_only_probes_are_answered():
    app = fake_app(FakeEngine(), max_connections=3)
    with serving(app) as url, contextlib.ExitStack() as crowd:
        for _ in range(3):
            crowd.enter_context(connection(url))
        time.sleep(0.1)
        refused = httpx.post(
            f"{url}/v1/completions", content=BODY, headers={"Content-Type": "application/json"}
        )
        probes = [httpx.get(f"{url}/{path}").status_code for path in ("health", "ready", "metrics")]

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert refused.headers["Retry-After"]
    assert refused.headers["Connection"] == "close"
    assert probes == [200, 200, 200]


def test_a_client_that_reads_nothing_is_dropped_and_its_request_ended(monkeypatch, engine):
    patch_limits(monkeypatch, write_timeout_s=0.3)
    engine.text = "x" * 20_000
    engine.info = FakeEngine().info.__class__(
        **{
            **{name: getattr(engine.info, name) for name in engine.info.__slots__},
            "max_model_len": 100_000,
        }
    )
    body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 20_000, "stream": True})
    with serving(fake_app(engine)) as url, connection(url) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body.encode())
        deadline = time.monotonic() + 20
        while not engine.aborted and time.monotonic() < deadline:
            time.sleep(0.05)

    assert len(engine.aborted) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_only_ends_its_sending_side_counts_as_gone(live_url, engine, stream):
    engine.token_delay_s = 0.05
    body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 200, "stream": stream})
    with connection(live_url) as sock:
        sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body.encode())
        while not engine.open_ids:
            time.sleep(0.01)
        sock.shutdown(socket.SHUT_WR)
        _, content = answer(sock)
        deadline = time.monotonic() + 10
        while engine.open_ids and time.monotonic() < deadline:
            time.sleep(0.01)

    assert len(engine.aborted) == 1
    assert b"[DONE]" not in content


class Unread:
    """A transport whose write buffer has the next of the given sizes whenever it is asked."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = list(sizes)
        self.is_aborted = False

    def get_extra_info(self, name: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return self.sizes.pop(0)

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.is_aborted = True


async def test_a_client_that_reads_however_slowly_is_not_given_up():
    unread = Unread(1000, 900, 899, 899)
    limits = ConnectionLimits(write_timeout_s=0.01)
    loop = asyncio.get_running_loop()
    protocol = BoundedProtocol(uvicorn.Config(None), ServerState(), {}, loop, limits=limits)
    protocol.connection_made(unread)
    protocol.pause_writing()
    while unread.sizes:
        assert not unread.is_aborted
        await asyncio.sleep(0.005)

    assert unread.is_aborted, "it has read nothing since the last look"
    protocol.connection_lost(ConnectionAbortedError())


def asked(connection: h11.Connection, line: bytes = b"GET / HTTP/1.1") -> h11.Connection:
    connection.receive_data(line + b"\r\nHost: x\r\n\r\n")
    connection.next_event()
    return connection


def bounded(flush_soon: Callable[[], object] = int) -> _BoundedConnection:
    return _BoundedConnection(ConnectionLimits(), flush_soon)


@pytest.mark.parametrize("asks", [b"GET / HTTP/1.1", b"GET / HTTP/1.0", b"HEAD / HTTP/1.1"])
@pytest.mark.parametrize("length", [None, 7])
def test_pieces_of_a_stream_are_framed_as_h11_frames_them(asks, length):
    said = []
    for connection in (h11.Connection(h11.SERVER), bounded()):
        asked(connection, asks)
        headers = [("content-length", str(length))] if length else []
        pieces = [b""] * 2 if asks.startswith(b"HEAD") else [b"abc", b"", b"defg"]
        events = [
            h11.Response(status_code=200, headers=headers),
            *(h11.Data(data=p) for p in pieces),
        ]
        said.append(b"".join(connection.send(event) for event in (*events, h11.EndOfMessage())))
        with pytest.raises(h11.LocalProtocolError):
            connection.send(h11.Data(data=b"late"))

    assert said[0] == said[1]


@pytest.mark.parametrize("asks", [b"GET / HTTP/1.1", b"GET / HTTP/1.0", b"HEAD / HTTP/1.1"])
@pytest.mark.parametrize("framing", [[], ["Content-Length: 3"], ["Connection: keep-alive"]])
@pytest.mark.parametrize("closes", [False, True])
def test_a_head_is_that_of_h11(asks, framing, closes):
    lines = ["X-Request-Id: é", *framing, "content-type: text/plain", "Vary: a", "Vary: b"]
    lines += ["connection: close"] * closes
    headers = [tuple(line.encode("latin-1").split(b": ")) for line in lines]
    heads, states = [], []
    for connection in (h11.Connection(h11.SERVER), bounded()):
        asked(connection, asks)
        sent = connection.send(h11.Response(status_code=207, reason=b"So so", headers=headers))
        head, end, rest = (sent or connection.take_held()).partition(b"\r\n\r\n")
        assert (end, rest) == (b"\r\n\r\n", b"")
        status_line, *fields = head.split(b"\r\n")
        heads.append((status_line, sorted(fields)))
        for event in (h11.Data(data=b"abc"), h11.EndOfMessage()):
            if not asks.startswith(b"HEAD") or type(event) is not h11.Data:
                connection.send(event)
        states.append(connection.our_state)

    assert heads[0] == heads[1]
    assert states[0] is states[1]


def test_an_answer_of_one_turn_of_the_loop_leaves_in_one_piece():
    calls = []
    connection = asked(bounded(lambda: calls.append(1)))

    assert connection.send(h11.Response(status_code=200, headers=[])) == b""
    assert connection.send(h11.Data(data=b"abc")) == b""
    sent = connection.send(h11.EndOfMessage())
    assert sent.startswith(b"HTTP/1.1 200")
    assert sent.endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    assert len(calls) == 1


def test_what_nothing_follows_is_held_for_no_longer_than_a_turn():
    calls = []
    connection = asked(bounded(lambda: calls.append(1)))

    connection.send(h11.Response(status_code=200, headers=[]))
    assert calls == [1], "somebody is asked to take it"
    assert connection.take_held().startswith(b"HTTP/1.1 200")
    assert connection.send(h11.Data(data=b"abc")) == b""
    assert calls == [1, 1]
    assert connection.take_held() == b"3\r\nabc\r\n"
    assert connection.take_held() == b""


def test_what_is_long_is_not_held():
    connection = asked(bounded())
    connection.send(h11.Response(status_code=200, headers=[]))

    assert len(connection.send(h11.Data(data=b"x" * 100_000))) > 100_000
