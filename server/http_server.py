"""uvicorn with our way to stop: at SIGTERM finish what is open, refuse what is new, then exit 0."""

import asyncio
import errno
import socket
import ssl
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from server.service import InferenceService

_MAX_POLITE_SIGNALS = 2
_LEFTOVER_TIMEOUT_S = 5  # for responses to be flushed once the engine has ended every request


class CannotListen(Exception):
    """The address cannot be had; the message says what to do."""


class DrainingServer(uvicorn.Server):
    """Serves until a signal or a failed load.

    The first signal lets open requests finish, the second ends them, the third ends the process.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: InferenceService,
        drain_timeout_s: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",  # bounds the size of headers, which httptools does not
                ws="none",
                lifespan="on",
                log_config=None,
                server_header=False,
                access_log=False,  # server.access_log writes one with more in it
                ssl_context_factory=None if tls is None else lambda _, __: tls,
                timeout_graceful_shutdown=_LEFTOVER_TIMEOUT_S,
            )
        )
        self._service = service
        self._drain_timeout_s = drain_timeout_s
        self._num_signals = 0
        self._num_handled = 0
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Only counts: uvicorn's own would refuse connections at once and re-raise the signal."""
        self._num_signals += 1
        self.force_exit = self._num_signals > _MAX_POLITE_SIGNALS

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true ends the main loop."""
        if self._num_signals > self._num_handled:
            timeout_s = 0.0 if self._num_handled else self._drain_timeout_s
            self._num_handled = self._num_signals
            self._draining = asyncio.create_task(self._service.stop(timeout_s))
        is_drained = self._draining is not None and self._draining.done()
        has_failed = self._service.failure is not None and not self._num_signals
        self.should_exit = self.should_exit or is_drained or has_failed or self.force_exit
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        CannotListen: the port is taken or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} on {host} is in use; choose another with --port"
        elif error.errno == errno.EACCES:
            reason = f"port {port} needs privileges; choose one above 1023 with --port"
        else:
            reason = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise CannotListen(reason) from None
