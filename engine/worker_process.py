"""The worker as a process of its own, seen from the event loop. Implements `engine.plan.Worker`."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Literal

from engine import errors
from engine.config import EngineConfig
from engine.heartbeat import Watchdog, tick_s
from engine.memory_kills import num_memory_kills
from engine.plan import StepPlan, StepResult, WorkerInfo
from engine.preparation import Preparation
from engine.request import Structure
from engine.wire import HEADER, Failure, Message, Progress, Wire, frame_length

logger = logging.getLogger(__name__)

# Signals that people, supervisors and a kernel short of memory send; no computation's fault does.
_SIGNALS_FROM_OUTSIDE = frozenset((signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
_GRACE_S = 5.0  # for a worker to finish its step and end once its socket is closed


class WorkerProcess:
    """Spawns, feeds, watches and ends one worker process at a time."""

    def __init__(
        self,
        config: EngineConfig,
        on_progress: Callable[[str, float], None] | None = None,
        *,
        module: str = "engine.worker.main",
    ) -> None:
        """
        Args:
            config: What the worker is to serve, and its time limits.
            on_progress: Called with (what is being done, fraction done) while the worker loads.
            module: The process's main module.
        """
        self._config = config
        self._module = module
        self._on_progress = on_progress or (lambda text, fraction: None)
        self._wire = Wire()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._watchdog: Watchdog | None = None
        self._preparation: Preparation | None = None
        self._hang: errors.WorkerLost | None = None  # why the watchdog killed it
        self._memory_kills: int | None = None  # the machine's count when it was started
        self._is_loaded = False

    @property
    def pid(self) -> int | None:
        """The worker's process id while it lives."""
        return None if self._process is None else self._process.pid

    async def spawn(self) -> None:
        """Start the process, so that it imports its modules early; `start` does so if need be.

        Raises:
            OSError: The system has no process or file for it; `close` ends what was begun.
        """
        level = logging.getLevelName(logger.getEffectiveLevel())
        limits = self._config.supervision
        timeouts_s = limits.step_timeout_s, limits.heartbeat_timeout_s
        self._hang = None
        self._memory_kills = num_memory_kills()
        with ExitStack() as child_ends:  # closed here once the child has its own
            ours, theirs = socket.socketpair()
            child_ends.callback(theirs.close)
            self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            our_preparations, their_preparations = socket.socketpair()
            child_ends.callback(their_preparations.close)
            self._preparation = Preparation(our_preparations)
            pipe, beat_pipe = os.pipe()
            child_ends.callback(os.close, beat_pipe)
            os.set_blocking(pipe, False)
            self._watchdog = Watchdog(
                pipe,
                self._kill_hanging,
                step_timeout_s=limits.step_timeout_s,
                heartbeat_timeout_s=limits.heartbeat_timeout_s,
            )
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                str(theirs.fileno()),
                str(beat_pipe),
                str(tick_s(*timeouts_s)),
                str(their_preparations.fileno()),
                pass_fds=[theirs.fileno(), beat_pipe, their_preparations.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for the server alone
                env={**os.environ, "ADADECODE_LOG_LEVEL": level},
            )

    async def start(self) -> WorkerInfo:
        """See `Worker.start`."""
        if self._process is None:
            await self.spawn()
        assert self._watchdog is not None
        try:
            self._write(self._config)
            await self._drain()
            while True:
                self._watchdog.begin()
                message = await self._receive()
                self._watchdog.end()
                if isinstance(message, Progress):
                    self._on_progress(message.text, message.fraction)
                elif isinstance(message, Failure):
                    raise _load_error(message)
                else:
                    assert isinstance(message, WorkerInfo), "a loading worker tells how far it is"
                    self._is_loaded = True
                    self._config = _pinned(self._config, message)
                    return message
        except errors.WorkerLost as error:
            raise errors.ModelLoadError(f"while loading the model, {error}") from error

    def execute(self, plan: StepPlan) -> Awaitable[StepResult]:
        """See `Worker.execute`."""
        assert self._watchdog is not None, "start the worker first"
        self._watchdog.begin()
        self._write(plan)
        return self._result_of(plan)

    async def prepare(self, structure: Structure) -> None:
        """See `Worker.prepare`."""
        if self._preparation is not None:
            await self._preparation.prepare(structure)

    async def watch(self) -> None:
        """See `Worker.watch`."""
        assert self._process is not None, "start the worker first"
        raise self._died(await self._process.wait())

    async def close(self) -> None:
        """See `Worker.close`."""
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()
        # A worker that is still loading, or hangs, does not notice that its socket is closed.
        await self._end(_GRACE_S if self._is_loaded and not self._hang else 0)
        if self._watchdog is not None:
            self._watchdog.close()
        if self._preparation is not None:
            self._preparation.close()
        self._process = self._reader = self._writer = self._watchdog = self._preparation = None
        self._is_loaded = False

    def _kill_hanging(self, reason: str, is_busy: bool) -> None:
        message = f"the worker process was killed, because {reason}"
        self._hang = errors.WorkerLost(message, is_crash=is_busy)
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _result_of(self, plan: StepPlan) -> StepResult:
        """Wait for the result of a plan that was sent."""
        assert self._watchdog is not None, "start the worker first"
        await self._drain()
        message = await self._receive()
        self._watchdog.end()
        if isinstance(message, Failure):
            reason = f"step {plan.step_id} failed: {message.kind}: {message.message}"
            raise errors.WorkerLost(reason, is_crash=True)
        assert isinstance(message, StepResult), "a plan is answered by its result"
        return message

    def _write(self, message: Message) -> None:
        assert self._writer is not None, "start the worker first"
        self._writer.write(self._wire.encode(message))

    async def _drain(self) -> None:
        assert self._writer is not None, "start the worker first"
        try:
            await self._writer.drain()
        except OSError:
            raise self._died(await self._end(_GRACE_S)) from None

    async def _receive(self) -> Message:
        assert self._reader is not None, "start the worker first"
        try:
            length, kind = frame_length(await self._reader.readexactly(HEADER.size))
            return self._wire.decode(kind, await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, OSError):
            raise self._died(await self._end(_GRACE_S)) from None

    def _died(self, status: int) -> errors.WorkerLost:
        if self._hang is not None:
            return self._hang
        how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
        is_crash = -status not in _SIGNALS_FROM_OUTSIDE
        was_killed = not is_crash
        if status == -signal.SIGKILL:  # the kernel sends it, too
            kills = num_memory_kills()
            was_killed = kills is not None and kills == self._memory_kills
            how += "" if was_killed else ", perhaps for lack of memory"
        message = f"the worker process ended ({how})"
        return errors.WorkerLost(message, is_crash=is_crash, was_killed=was_killed)

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
    """Return the worker's own exception if it is a ModelLoadError, else such an error."""
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, errors.ModelLoadError):
        return kind(failure.message)
    return errors.ModelLoadError(f"the worker could not load: {failure.kind}: {failure.message}")


def _pinned(config: EngineConfig, info: WorkerInfo) -> EngineConfig:
    """Return `config` with automatic choices fixed: the next worker must compute the same bits."""
    chosen: dict[str, Literal["native", "torch"]] = {"native": "native", "torch": "torch"}
    backend = chosen.get(info.backend, config.model.backend)
    return replace(
        config,
        model=replace(config.model, backend=backend),
        cache=replace(config.cache, num_blocks=config.cache.num_blocks or info.num_blocks),
    )
