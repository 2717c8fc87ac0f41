"""Keeps a worker running: replaces one that was lost, and gives up when that is no use.

It deals with the worker's life only; what the lost worker was computing is up to the engine.

    start ─▶ running ─ WorkerLost ─▶ replace ─▶ running
                                        └─ again and again without progress ─▶ EngineFailed
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable
from dataclasses import replace
from typing import NamedTuple

from engine.errors import EngineFailed, ModelLoadError, WorkerLost
from engine.plan import StepPlan, StepResult, Worker, WorkerInfo
from engine.request import Structure

logger = logging.getLogger(__name__)

_MOST_LOSSES = 5  # crashes, hangs and failures to load without progress at which to give up
_MOST_KILLS = 25  # kills from outside at which to give up: nothing here is broken
_WINDOW_S = 600.0  # losses that much earlier than the latest replacement began do not count
_LONGEST_PAUSE_S = 5.0  # before the next attempt after a worker could not load


class _Loss(NamedTuple):
    """One lost worker, or one that could not load."""

    when: float  # seconds, of the monotonic clock
    was_killed: bool  # from outside


class Supervisor:
    """Keeps one worker running at a time."""

    def __init__(self, worker: Worker) -> None:
        self.num_restarts = 0
        self.recovery_time_s_total = 0.0
        self.is_recovering = False
        self._worker = worker
        self._info: WorkerInfo | None = None
        self._losses: deque[_Loss] = deque()  # since the last progress

    async def start(self) -> WorkerInfo:
        """See `Worker.start`; here a failure is final."""
        self._info = await self._worker.start()
        return self._info

    def execute(self, plan: StepPlan) -> Awaitable[StepResult]:
        """See `Worker.execute`."""
        return self._worker.execute(plan)

    async def prepare(self, structure: Structure) -> None:
        """See `Worker.prepare`."""
        if not self.is_recovering:
            await self._worker.prepare(structure)

    async def watch(self) -> None:
        """See `Worker.watch`."""
        await self._worker.watch()

    async def close(self) -> None:
        """See `Worker.close`."""
        await self._worker.close()

    def note_progress(self) -> None:
        """Note that a request made progress, or was ended as the cause of the losses."""
        self._losses.clear()

    async def replace(self, loss: WorkerLost) -> WorkerInfo:
        """End what is left of the worker and start another.

        Returns:
            The new worker's facts; only the number of KV blocks may differ from the first one's.

        Raises:
            EngineFailed: Too many workers were lost without progress.
        """
        started = time.monotonic()
        self.is_recovering = True
        reason: Exception = loss
        pause_s = 0.0
        while True:
            logger.error("the worker is lost: %s", reason)
            self._count_loss(reason, since=started - _WINDOW_S)
            await self._worker.close()
            await asyncio.sleep(pause_s)
            try:
                info = await self._worker.start()
                self._require_same(info)
                break
            except (ModelLoadError, OSError) as error:  # the latter: out of processes or files
                reason, pause_s = error, min(_LONGEST_PAUSE_S, 2 * pause_s + 0.5)
        seconds = time.monotonic() - started
        self.num_restarts += 1
        self.recovery_time_s_total += seconds
        self.is_recovering = False
        logger.warning("a new worker is ready after %.1f s", seconds)
        return info

    def _count_loss(self, reason: Exception, *, since: float) -> None:
        """Count a loss; those before `since` are forgotten."""
        was_killed = _was_killed(reason)
        self._losses.append(_Loss(time.monotonic(), was_killed))
        while self._losses[0].when < since:
            self._losses.popleft()
        num_alike = sum(loss.was_killed == was_killed for loss in self._losses)
        if num_alike >= (_MOST_KILLS if was_killed else _MOST_LOSSES):
            raise EngineFailed(
                f"{len(self._losses)} workers in a row were lost before any request got further; "
                f"the last one: {reason}"
            )

    def _require_same(self, info: WorkerInfo) -> None:
        """Refuse a worker that open requests could not go on with; fewer KV blocks are fine."""
        assert self._info is not None, "the first worker has started"
        if replace(info, num_blocks=self._info.num_blocks) != self._info:
            raise ModelLoadError(f"the new worker serves something else: {info}, not {self._info}")


def _was_killed(reason: Exception) -> bool:
    """Whether a worker was killed from outside, perhaps while it was loading."""
    loss = reason.__cause__ if isinstance(reason, ModelLoadError) else reason
    return isinstance(loss, WorkerLost) and loss.was_killed
