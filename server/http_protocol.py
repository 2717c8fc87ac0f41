"""uvicorn's HTTP/1.1 protocol with bounds it does not have: on time, on headers, on chunks.

A connection that says nothing, a request head or a rest of a body that drips in, a reader that does
not read: each holds a file descriptor for ever in uvicorn. Here each has a deadline. Requests that
are refused before there is a scope are answered in OpenAI's envelope all the same.
"""

import asyncio
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
_MIN_MEAN_CHUNK_BYTES = 64  # of those beyond; each costs as much to parse as kilobytes of body
_MAX_HELD_BYTES = 64 * 1024  # of an answer, until the turn of the event loop is over
_PROBE_RESERVE = 64  # connections beyond the limit, on which probes are answered
_CROWDED_TIMEOUT_S = 1  # a probe asks at once and comes anew the next time
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
_CHUNK_BEHIND = b"%b%x\r\n%b\r\n"  # what was held back; length and bytes of the chunk
_FRAMING_HEADERS = frozenset((b"connection", b"content-length", b"transfer-encoding"))
_CONNECTION = "connection"  # key of a scope's state
CROWDED = "is_crowded"  # key of a scope's state: the connection came when there were too many


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection may cost."""

    max_connections: int = 8192
    max_header_bytes: int = 64 * 1024
    max_header_count: int = 256
    head_timeout_s: float = 10.0  # from a request's first byte, or the connection, to its last line
    write_timeout_s: float = 60.0  # without the client reading what is buffered for it


class BoundedProtocol(H11Protocol):
    """One connection."""

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
        self._leaving: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse at once what is beyond the reserve; mark what is beyond the limit."""
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
        """No timer outlives the connection; who waits for the client's leaving is told."""
        self._cancel_head_timer()
        self._cancel_write_timer()
        if self._leaving is not None and not self._leaving.done():
            self._leaving.set_result(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head, a body, or of a body whose request is answered already."""
        super().data_received(data)
        self._watch_head()

    def handle_events(self) -> None:
        """Also called for a request that had to wait for the answer of the one before."""
        super().handle_events()
        if self._is_answering:
            self._cancel_head_timer()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self._limits.write_timeout_s, self._on_write_timeout
            )

    def resume_writing(self) -> None:
        """It has read."""
        self._cancel_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Called for what is no HTTP; the status may be more exact than 400."""
        status = HTTPStatus(self._bounded.error_status)
        code, message = _REASONS.get(status, ("invalid_http", "This is not a valid HTTP request."))
        self._refuse(
            Failure(status=status, type="invalid_request_error", code=code, message=message)
        )

    @property
    def has_whole_body(self) -> bool:
        """Whether the body of the request that is being answered is here to its end."""
        return self.cycle is not None and not self.cycle.more_body

    def leaving(self) -> asyncio.Future[None]:
        """Done when the client is gone; for one request at a time, and cancelled once its answer is
        over.
        """
        self.flow.resume_reading()  # else nobody would notice
        self._leaving = self.loop.create_future()
        if self.cycle is None or self.cycle.disconnected:
            self._leaving.set_result(None)
        return self._leaving

    @property
    def can_take_piece(self) -> bool:
        """Whether a further piece of the stream that is being sent can go out at once: it has
        begun, the client reads, and nothing is buffered beyond measure.
        """
        return (
            self._bounded.is_sending_chunks
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def send_piece(self, piece: bytes) -> None:
        """Send a piece, not empty, as `can_take_piece` said.

        What the application's `send` would do with it, less the way there: of a stream's middle
        nobody needs to know, neither middleware nor h11's state machine.
        """
        self.transport.write(_CHUNK_BEHIND % (self._bounded.take_held(), len(piece), piece))

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _flush_soon(self) -> None:
        self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self.transport.write(self._bounded.take_held())

    def _watch_head(self) -> None:
        """One deadline from the first byte to the complete head, whatever drips in between."""
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

    def _on_write_timeout(self) -> None:
        self._write_timer = None
        self.logger.info("a client that stopped reading was given up")
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
        """Answer without a scope, if nothing is being answered, and close."""
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
    """The connection that a request came on; None where another server is in front (tests)."""
    connection = scope.get("state", {}).get(_CONNECTION)
    return connection if isinstance(connection, BoundedProtocol) else None


class _BoundedConnection(h11.Connection):
    """h11's state machine, with bounds on complete heads and on the number of chunks.

    What is sent within one turn of the event loop leaves in one piece: head, body and end of a
    short answer would else be three packets, and to send one costs as much as to render several
    tokens.
    """

    def __init__(self, limits: ConnectionLimits, flush_soon: Callable[[], object]) -> None:
        """Args: flush_soon: called when something is held: within this turn `take_held` is called,
        or something is sent that takes it along.
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
        """See h11; takes note of how the body is framed, frames a stream's pieces itself (they
        change no state), and holds back what more will follow.
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
        """As h11 would, which is shown those headers alone that it acts upon: it goes through all
        that it sees four times.
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
        """What was held back, to be sent now."""
        held, self._held = self._held, b""
        return held

    def _hold(self, sent: bytes) -> bytes:
        """Keep what may go out with the next; what is long goes out at once."""
        if len(self._held) + len(sent) > _MAX_HELD_BYTES:
            return self.take_held() + sent
        if not self._held:
            self._flush_soon()
        self._held += sent
        return b""

    def next_event(self) -> Any:
        """See h11.

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
    """A chunk of a body of unknown length (RFC 9112, 7.1); an empty one would end it."""
    return _CHUNK_BEHIND % (b"", len(data), data)
