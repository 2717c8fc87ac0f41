"""A worker in the server's own process, with a thread for its steps. Implements `Worker`.

For tests and debugging: a crash in native code takes the server with it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from engine.config import EngineConfig
from engine.errors import WorkerLost
from engine.offline import SynchronousWorker
from engine.plan import StepPlan, StepResult, WorkerInfo
from engine.request import Structure


class InlineWorker:
    """Runs a synchronous worker, which it also makes, in a thread."""

    def __init__(self, make: Callable[[], SynchronousWorker]) -> None:
        self._make = make
        self._worker: SynchronousWorker | None = None
        self._thread = self._new_thread()

    async def start(self) -> WorkerInfo:
        """See `Worker.start`."""
        loop = asyncio.get_running_loop()
        self._worker = await loop.run_in_executor(self._thread, self._make)
        return self._worker.info

    def execute(self, plan: StepPlan) -> Awaitable[StepResult]:
        """See `Worker.execute`."""
        assert self._worker is not None, "start the worker first"
        loop = asyncio.get_running_loop()
        step = loop.run_in_executor(self._thread, self._worker.execute, plan)
        return self._result_of(plan, step)

    async def prepare(self, structure: Structure) -> None:
        """See `Worker.prepare`."""
        if self._worker is not None:
            await asyncio.to_thread(self._worker.prepare, structure)

    async def watch(self) -> None:
        """See `Worker.watch`; never returns, because the thread lives as long as this process."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """See `Worker.close`."""
        self._worker = None
        thread, self._thread = self._thread, self._new_thread()
        thread.shutdown(wait=True)

    async def _result_of(self, plan: StepPlan, step: Awaitable[StepResult]) -> StepResult:
        try:
            result = await step
        except Exception as error:
            raise WorkerLost(f"step {plan.step_id} failed: {error!r}", is_crash=True) from error
        assert self._worker is not None, "start the worker first"
        self._thread.submit(self._worker.rest, is_idle=False)
        return result

    @staticmethod
    def _new_thread() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")


def inline_model_worker(config: EngineConfig) -> InlineWorker:
    """Return an inline worker that serves the configured model."""

    def make() -> SynchronousWorker:
        from engine.worker.worker import ModelWorker

        return ModelWorker(config)

    return InlineWorker(make)
