"""uvicorn's HTTP/1.1 protocol with bounds it does not have: on time, on headers, on chunks.

In uvicorn a silent connection, a request head or the unread rest of a body that trickles in, and a
client that does not read each hold a file descriptor for ever. Here each has a deadline. Requests
that are refused before there is an ASGI scope still get an answer in OpenAI's error envelope.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Any

import h11
from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from server.errors import Failure

_FREE_CHUNKS = 1024  # chunks of a body that may be of any size
# Body bytes required for every chunk beyond the free ones: each costs as much to parse as kilobytes
# of body.
_MIN_MEAN_CHUNK_BYTES = 64
_MAX_HELD_BYTES = 64 * 1024  # of an answer, held back until the event loop's turn is over
_PROBE_RESERVE = 64  # connections accepted beyond the limit, on which only probes are answered
# Timeout of connections beyond the limit: a probe asks at once and connects anew the next time.
_CROWDED_TIMEOUT_S = 1
_REFUSED_AT_LIMIT = Failure(
    status=HTTPStatus.SERVICE_UNAVAILABLE,
    type="service_unavailable_error",
    code="server_is_overloaded",
    message="Too many connections are open; try again later.",
    retry_after_s=1,
)
_REASONS = {
    HTTPStatus.REQUEST_TIMEOUT: ("request_timeout", "The request took too long to arrive."),
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: (
        "headers_too_large",
        "The request's headers are too large or too many.",
    ),
}
_CHUNK_BEHIND = b"%b%x\r\n%b\r\n"  # held-back bytes, then a chunk: its length and its bytes
_FRAMING_HEADERS = frozenset((b"connection", b"content-length", b"transfer-encoding"))
_CONNECTION = "connection"  # key in a scope's state: the request's `BoundedProtocol`
CROWDED = "is_crowded"  # key in a scope's state: the connection is one beyond the limit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """How many connections there may be, and what each may cost."""

    max_connections: int = 8192
    max_header_bytes: int = 64 * 1024
    max_header_count: int = 256
    head_timeout_s: float = 10.0  # from the connection or a request's first byte to its head's end
    write_timeout_s: float = 60.0  # without the client reading any of what is buffered for it


class BoundedProtocol(H11Protocol):
    """One client's connection, with deadlines and limits."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = self._bounded = _BoundedConnection(limits, self._flush_soon)
        self._limits = limits
        self._head_timeout_s = limits.head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._num_unread = 0  # bytes buffered for the client when the write timer was set
        self._leaving: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse a connection beyond the reserve at once; mark one beyond the limit as crowded."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, _CONNECTION: self}
        excess = len(self.connections) - self._limits.max_connections
        if excess > _PROBE_RESERVE:
            self._refuse(_REFUSED_AT_LIMIT)
            return
        if excess > 0:
            self.app_state = {**self.app_state, CROWDED: True}
            self._head_timeout_s = self.timeout_keep_alive = _CROWDED_TIMEOUT_S
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers, and tell whoever waits for the client to leave.

        One that only closes its sending side (`nc -N`) counts as gone as well: until something is
        written to it, nothing tells it from one that has closed its connection. As in uvicorn and
        Go (golang/go#18527); otherwise every whole answer would be made for clients that left.
        """
        self._cancel_head_timer()
        self._cancel_write_timer()
        if self._leaving is not None and self._is_watched:
            self._leaving.set_result(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse bytes of a head or a body, even of a body whose request is already answered."""
        super().data_received(data)
        if self._is_watched and len(self.conn.trailing_data[0]) <= self._limits.max_header_bytes:
            self.flow.resume_reading()  # uvicorn pauses it at a pipelined request's first byte
        self._watch_head()

    def handle_events(self) -> None:
        """Handle parsed events; a pipelined request's come once the one before it is answered."""
        super().handle_events()
        if self._is_answering:
            self._cancel_head_timer()

    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: HTTP lets a server ignore an upgrade, and some clients ask each time."""

    def pause_writing(self) -> None:
        """Start the write deadline: the client reads more slowly than we write."""
        super().pause_writing()
        if self._write_timer is None:
            self._watch_writing()

    def resume_writing(self) -> None:
        """Cancel the write deadline: the client has caught up."""
        self._cancel_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not valid HTTP; the status may be more specific than 400."""
        status = HTTPStatus(self._bounded.error_status)
        code, message = _REASONS.get(status, ("invalid_http", "This is not a valid HTTP request."))
        self._refuse(
            Failure(status=status, type="invalid_request_error", code=code, message=message)
        )

    @property
    def has_whole_body(self) -> bool:
        """Whether the body of the request that is being answered has arrived completely."""
        return self.cycle is not None and not self.cycle.more_body

    def leaving(self) -> asyncio.Future[None]:
        """Return a future that is done when the client has left.

        Only one request at a time may have it, and cancels it once its answer is over.
        """
        self.flow.resume_reading()  # otherwise a disconnect would go unnoticed
        self._leaving = self.loop.create_future()
        if self.cycle is None or self.cycle.disconnected:
            self._leaving.set_result(None)
        return self._leaving

    @property
    def can_take_piece(self) -> bool:
        """Whether the next piece of a stream can go out at once.

        It can if the stream has begun and the client reads fast enough not to pause writing.
        """
        return (
            self._bounded.is_sending_chunks
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def send_piece(self, piece: bytes) -> None:
        """Send a piece, which must not be empty, while `can_take_piece`.

        This writes what the application's `send` would, without the way through the middleware and
        h11's state machine: neither needs to see the middle of a stream.
        """
        self.transport.write(_CHUNK_BEHIND % (self._bounded.take_held(), len(piece), piece))

    @property
    def _is_watched(self) -> bool:
        """Whether somebody waits for the client to leave."""
        return self._leaving is not None and not self._leaving.done()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _flush_soon(self) -> None:
        self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.transport.write(self._bounded.take_held())

    def _watch_head(self) -> None:
        """Keep one deadline from the first byte to the complete head, however it trickles in."""
        if self._is_answering or self.transport.is_closing():
            self._cancel_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._head_timeout_s, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self.conn.trailing_data[0]:
            self._bounded.error_status = HTTPStatus.REQUEST_TIMEOUT
            self.send_400_response("")
        else:
            self.transport.close()

    def _watch_writing(self) -> None:
        self._num_unread = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(
            self._limits.write_timeout_s, self._on_write_timeout
        )

    def _on_write_timeout(self) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() < self._num_unread:
            self._watch_writing()  # the client reads, however slowly
            return
        logger.info("connection aborted: the client stopped reading")
        self.transport.abort()

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _refuse(self, failure: Failure) -> None:
        """Answer without a scope, unless another answer has begun, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            headers.append((b"content-length", str(len(failure.body)).encode()))
            if failure.retry_after_s is not None:
                headers.append((b"retry-after", str(failure.retry_after_s).encode()))
            reason = HTTPStatus(failure.status).phrase.encode()
            for event in (
                h11.Response(status_code=failure.status, headers=headers, reason=reason),
                h11.Data(data=failure.body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def connection_of(scope: Scope) -> BoundedProtocol | None:
    """Return the connection of a request; None if another server runs the application (tests)."""
    connection = scope.get("state", {}).get(_CONNECTION)
    return connection if isinstance(connection, BoundedProtocol) else None


class _BoundedConnection(h11.Connection):
    """h11's state machine, with bounds on complete heads and on the number of chunks.

    What is sent within one turn of the event loop leaves in one piece. Otherwise head, body and end
    of a short answer would be three packets, and sending one costs as much as rendering several
    tokens.
    """

    def __init__(self, limits: ConnectionLimits, flush_soon: Callable[[], object]) -> None:
        """
        Args:
            limits: The bounds.
            flush_soon: Called when bytes are held back; has to arrange that `take_held` is called,
                unless something sent before takes them along.
        """
        super().__init__(h11.SERVER, limits.max_header_bytes)
        self._flush_soon = flush_soon
        self._held = b""
        self.error_status: int = HTTPStatus.BAD_REQUEST
        self._limits = limits
        self._num_chunks = 0
        self._num_body_bytes = 0
        self.is_sending_chunks = False  # a stream has begun and not ended

    def send(self, event: Any) -> Any:
        """Encode an event as h11 does; return the bytes to send now.

        A stream's pieces, which change no state of h11's, are framed here. What is certain to be
        followed by more is held back.
        """
        kind = type(event)
        if self.is_sending_chunks and kind is h11.Data:
            return self._hold(_chunk(event.data) if event.data else b"")
        if kind is h11.Response:
            return self._hold(self._send_head(event))
        sent = super().send(event)
        if kind is h11.EndOfMessage:
            self.is_sending_chunks = False
        return self._hold(sent) if kind is h11.Data else self.take_held() + (sent or b"")

    def _send_head(self, head: h11.Response) -> bytes:
        """Encode a head as h11 would, but show h11 only the headers that it acts on.

        h11 goes through all the headers it sees four times.
        """
        seen: list[tuple[bytes, bytes]] = []
        others: list[bytes] = []
        for name, value in head.headers.raw_items():
            if name.lower() in _FRAMING_HEADERS:
                seen.append((name, value))
            else:
                others.append(b"%b: %b\r\n" % (name, value))
        bare = h11.Response(status_code=head.status_code, headers=seen, reason=head.reason)
        sent = super().send(bare) or b""
        self.is_sending_chunks = b"\r\ntransfer-encoding: chunked\r\n" in sent.lower()
        return b"%b%b\r\n" % (sent.removesuffix(b"\r\n"), b"".join(others))

    def take_held(self) -> bytes:
        """Return what was held back, to be sent now."""
        held, self._held = self._held, b""
        return held

    def _hold(self, sent: bytes) -> bytes:
        """Keep bytes to go out with the next ones; return all at once when they are many."""
        if len(self._held) + len(sent) > _MAX_HELD_BYTES:
            return self.take_held() + sent
        if not self._held:
            self._flush_soon()
        self._held += sent
        return b""

    def next_event(self) -> Any:
        """Return the next event as h11 does.

        Raises:
            h11.RemoteProtocolError: not HTTP, or beyond a bound; `error_status` says which.
        """
        try:
            event = super().next_event()
            if type(event) is h11.Request:
                self._check_head(event)
            elif type(event) is h11.Data:
                self._check_chunks(event)
        except h11.RemoteProtocolError as error:
            self.error_status = error.error_status_hint
            raise
        return event

    def _check_head(self, head: h11.Request) -> None:
        self._num_chunks = self._num_body_bytes = 0
        headers = head.headers.raw_items()
        size = len(head.target) + sum(map(len, chain.from_iterable(headers)))
        if size > self._limits.max_header_bytes or len(headers) > self._limits.max_header_count:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise h11.RemoteProtocolError("headers too large", error_status_hint=status)

    def _check_chunks(self, data: h11.Data) -> None:
        self._num_chunks += data.chunk_start
        self._num_body_bytes += len(data.data)
        excess = self._num_chunks - _FREE_CHUNKS
        if excess > 0 and self._num_body_bytes < excess * _MIN_MEAN_CHUNK_BYTES:
            raise h11.RemoteProtocolError("too many small chunks")


def _chunk(data: bytes) -> bytes:
    """Frame a chunk of a body of unknown length (RFC 9112, 7.1); an empty one would end it."""
    return _CHUNK_BEHIND % (b"", len(data), data)
