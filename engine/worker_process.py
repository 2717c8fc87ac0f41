"""The worker as a process of its own, seen from the event loop. Implements `engine.plan.Worker`."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from engine import errors
from engine.config import EngineConfig
from engine.plan import StepPlan, StepResult, WorkerInfo
from engine.wire import HEADER, Failure, Message, Progress, Wire, frame_length

logger = logging.getLogger(__name__)

_GRACE_S = 5.0  # for a worker to finish its step and end once its socket is closed


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
        self._is_loaded = False

    @property
    def pid(self) -> int | None:
        """The worker's process id while it lives."""
        return None if self._process is None else self._process.pid

    async def start(self) -> WorkerInfo:
        """See `Worker.start`."""
        await self._spawn()
        try:
            await self._send(self._config)
            while True:
                message = await self._receive()
                if isinstance(message, Progress):
                    self._on_progress(message.text, message.fraction)
                elif isinstance(message, Failure):
                    raise _load_error(message)
                else:
                    assert isinstance(message, WorkerInfo), "a loading worker tells how far it is"
                    self._is_loaded = True
                    return message
        except errors.EngineFailed as error:
            raise errors.ModelLoadError(f"while loading the model, {error}") from error

    async def execute(self, plan: StepPlan) -> StepResult:
        """See `Worker.execute`."""
        await self._send(plan)
        message = await self._receive()
        if isinstance(message, Failure):
            raise errors.EngineFailed(f"step {plan.step_id} failed: {message.message}")
        assert isinstance(message, StepResult), "a plan is answered by its result"
        return message

    async def watch(self) -> None:
        """See `Worker.watch`."""
        assert self._process is not None, "start the worker first"
        raise _died(await self._process.wait())

    async def close(self) -> None:
        """See `Worker.close`."""
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()
        # One that is still loading listens to nobody.
        await self._end(_GRACE_S if self._is_loaded else 0)
        self._process = None

    async def _spawn(self) -> None:
        level = logging.getLevelName(logger.getEffectiveLevel())
        ours, theirs = socket.socketpair()
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "engine.worker.main",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "ADADECODE_LOG_LEVEL": level},
            )

    async def _send(self, message: Message) -> None:
        assert self._writer is not None, "start the worker first"
        try:
            self._writer.write(self._wire.encode(message))
            await self._writer.drain()
        except OSError:
            raise _died(await self._end(_GRACE_S)) from None

    async def _receive(self) -> Message:
        assert self._reader is not None, "start the worker first"
        try:
            length, kind = frame_length(await self._reader.readexactly(HEADER.size))
            return self._wire.decode(kind, await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            raise _died(await self._end(_GRACE_S)) from None

    async def _end(self, grace_s: float) -> int:
        """Give the process a while to end by itself, then kill it; returns its exit status."""
        if self._process is None:
            return 0
        try:
            return await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            return await self._process.wait()


def _load_error(failure: Failure) -> errors.ModelLoadError:
    """The worker's own exception, as far as it is one of ours."""
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, errors.ModelLoadError):
        return kind(failure.message)
    return errors.ModelLoadError(f"the worker could not load: {failure.kind}: {failure.message}")


def _died(status: int) -> errors.EngineFailed:
    how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
    if status == -signal.SIGKILL:
        how += ", perhaps for want of memory"
    return errors.EngineFailed(f"the worker process ended ({how})")
