"""uvicorn with a graceful stop: at SIGTERM, SIGINT or SIGHUP finish open requests, refuse new ones,
then exit 0.
"""

import asyncio
import errno
import logging
import resource
import signal
import socket
import ssl
import threading
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from server.http_protocol import BoundedProtocol, ConnectionLimits
from server.service import InferenceService
from server.settings import ServerSettings

# Connections that asyncio accepts in one turn of the loop, before any of them can be refused.
_BACKLOG = 512
_SPARE_FILES = _BACKLOG + 256  # open files and sockets besides the clients' connections
_MAX_POLITE_SIGNALS = 2
_LEFTOVER_TIMEOUT_S = 5  # for responses to be flushed once the engine has ended every request
_LOOK_S = 1.0  # between two looks at whether loading has failed; each also updates the Date header
_TICKS_PER_LOOK = 10  # uvicorn counts tenths of a second, and updates the Date header every tenth

logger = logging.getLogger(__name__)


class CannotListen(Exception):
    """The server cannot listen on the address; the message says why, and what to do about it."""


class DrainingServer(uvicorn.Server):
    """Serves until a signal or a failed load.

    The first signal lets open requests finish, the second ends them, the third ends the process.
    """

    def __init__(
        self,
        app: ASGIApp | Awaitable[ASGIApp],
        service: InferenceService,
        settings: ServerSettings,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """
        Args:
            app: The application, or an awaitable that makes it; signals count meanwhile.
            service: Stopped at a signal; its failure ends the server.
            settings: The server's settings.
            tls: Wraps the connections; None: plain HTTP.
        """
        super().__init__(uvicorn_config(app, settings, tls))  # type: ignore[arg-type] # see `serve`
        self._service = service
        self._drain_timeout_s = settings.shutdown_timeout
        self._num_signals = 0
        self._num_handled = 0
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # once it runs
        self._news = asyncio.Event()  # set at a signal and at the end of draining

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve as uvicorn does, but handle signals from now on, before the application is made."""
        with self.capture_signals(), self._capture_hangup():
            if isinstance(self.config.app, Awaitable):
                self.config.app = await self.config.app
            await super().serve(sockets)

    @contextmanager
    def _capture_hangup(self) -> Iterator[None]:
        """Stop at a closed terminal as well, unless `nohup` says to ignore it."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
            yield
            return
        signal.signal(signal.SIGHUP, self.handle_exit)
        try:
            yield
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Count the signal; uvicorn's handler would refuse connections at once and re-raise it."""
        self._num_signals += 1
        self.force_exit = self._num_signals > _MAX_POLITE_SIGNALS
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._news.set)

    async def main_loop(self) -> None:
        """Wait until the server has to exit.

        uvicorn's own loop wakes ten times a second, and a wake-up costs as much as rendering
        several tokens. This one wakes once a second, and at once when there is news.
        """
        self._loop = asyncio.get_running_loop()
        counter = 0
        while not await self.on_tick(counter):
            counter += _TICKS_PER_LOOK
            timer = self._loop.call_later(_LOOK_S, self._news.set)  # `wait_for` would take a task
            await self._news.wait()
            timer.cancel()
            self._news.clear()

    async def on_tick(self, counter: int) -> bool:
        """Act on new signals, failures and the end of draining; return whether to end the loop."""
        if self._num_signals > self._num_handled:
            timeout_s = 0.0 if self._num_handled else self._drain_timeout_s
            self._num_handled = self._num_signals
            self._draining = asyncio.create_task(self._service.stop(timeout_s))
            self._draining.add_done_callback(lambda _: self._news.set())
        is_drained = self._draining is not None and self._draining.done()
        has_failed = self._service.failure is not None and not self._num_signals
        self.should_exit = self.should_exit or is_drained or has_failed or self.force_exit
        return await super().on_tick(counter)


def uvicorn_config(
    app: ASGIApp, settings: ServerSettings, tls: ssl.SSLContext | None = None
) -> uvicorn.Config:
    """Make uvicorn's configuration, and raise this process's limit of open files as needed."""
    limits = ConnectionLimits(
        max_connections=_raise_file_limit(settings.max_connections),
        max_header_bytes=settings.h11_max_incomplete_event_size,
        max_header_count=settings.h11_max_header_count,
        write_timeout_s=settings.write_timeout,
    )
    return uvicorn.Config(
        app,
        http=partial(BoundedProtocol, limits=limits),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        server_header=False,
        access_log=False,  # server.access_log writes one with more in it
        ssl_context_factory=None if tls is None else lambda _, __: tls,
        backlog=_BACKLOG,
        timeout_keep_alive=settings.timeout_keep_alive,
        timeout_graceful_shutdown=_LEFTOVER_TIMEOUT_S,
    )


def _raise_file_limit(max_connections: int) -> int:
    """Let this process open a file per connection.

    Returns:
        The connections it can have: fewer than asked for where the system allows no more files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max_connections
    possible = max(1, soft - min(_SPARE_FILES, soft // 2))
    logger.warning(
        "the system allows %d open files, so %d connections instead of %d (ulimit -Hn)",
        soft,
        possible,
        max_connections,
    )
    return possible


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        CannotListen: the port is taken or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} on {host} is in use; choose another with --port"
        elif error.errno == errno.EACCES:
            reason = f"port {port} needs privileges; choose one above 1023 with --port"
        else:
            reason = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise CannotListen(reason) from None
    # Connections inherit the option. Without it, a second small piece of an answer would wait until
    # the client has acknowledged the first, which it may put off for 40 ms. asyncio does not set it
    # on such sockets.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
