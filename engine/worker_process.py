"""The worker as a process of its own, seen from the event loop. Implements `engine.plan.Worker`."""

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from engine import errors
from engine.config import EngineConfig
from engine.plan import StepPlan, StepResult, WorkerInfo
from engine.wire import HEADER, Failure, Message, Progress, Wire, frame_length

logger = logging.getLogger(__name__)

_GRACE_S = 5.0  # for a worker to end by itself once its socket is closed


class WorkerProcess:
    """Spawns, feeds and ends one worker."""

    def __init__(
        self, config: EngineConfig, on_progress: Callable[[str, float], None] | None = None
    ) -> None:
        self._config = config
        self._on_progress = on_progress or (lambda text, fraction: None)
        self._wire = Wire()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int | None:
        """The worker's process id while it lives."""
        return None if self._process is None else self._process.pid

    async def start(self) -> WorkerInfo:
        """See `Worker.start`."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engine.worker.main",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
            )
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        await self._send(self._config)
        while True:
            message = await self._receive()
            if isinstance(message, Progress):
                self._on_progress(message.text, message.fraction)
            elif isinstance(message, WorkerInfo):
                return message
            else:
                assert isinstance(message, Failure), "a loading worker reports progress or fails"
                raise _load_error(message)

    async def execute(self, plan: StepPlan) -> StepResult:
        """See `Worker.execute`."""
        await self._send(plan)
        message = await self._receive()
        if isinstance(message, Failure):
            raise errors.EngineFailed(f"step {plan.step_id} failed: {message.message}")
        assert isinstance(message, StepResult), "a plan is answered by its result"
        return message

    async def close(self) -> None:
        """See `Worker.close`."""
        process, self._process = self._process, None
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()
        if process is None:
            return
        try:
            await asyncio.wait_for(process.wait(), _GRACE_S)
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _send(self, message: Message) -> None:
        assert self._writer is not None, "start the worker first"
        try:
            self._writer.write(self._wire.encode(message))
            await self._writer.drain()
        except OSError as error:
            raise errors.EngineFailed("the worker process is gone") from error

    async def _receive(self) -> Message:
        assert self._reader is not None, "start the worker first"
        try:
            length, kind = frame_length(await self._reader.readexactly(HEADER.size))
            return self._wire.decode(kind, await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError) as error:
            raise errors.EngineFailed("the worker process is gone") from error


def _load_error(failure: Failure) -> errors.ModelLoadError:
    """The worker's own exception, as far as it is one of ours."""
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, errors.ModelLoadError):
        return kind(failure.message)
    return errors.ModelLoadError(f"the worker could not load: {failure.kind}: {failure.message}")
