"""A fake worker in the engine's own loop that can be killed."""

import asyncio

from fake_worker import FakeWorker

from engine.errors import ModelLoadError, WorkerLost
from engine.inline_worker import InlineWorker
from engine.plan import StepPlan, StepResult, WorkerInfo


class MortalWorker(InlineWorker):
    """An inline worker that dies when `death` is set; the next may load slowly or not at all."""

    def __init__(self, worker: FakeWorker) -> None:
        super().__init__(lambda: worker)
        self.fake = worker
        self.death = asyncio.Event()
        self.num_starts = 0
        self.dies_every: int | None = None  # number of steps after which each worker dies
        self.load_time_s = 0.0
        self.load_error: ModelLoadError | None = None
        self.num_blocks_after: int | None = None  # number of blocks after a restart
        self.was_killed = False  # whether it dies of a signal, and not for want of memory
        self.num_steps = 0

    async def start(self) -> WorkerInfo:
        self.num_starts += 1
        await asyncio.sleep(self.load_time_s)
        if self.load_error is not None and self.num_starts > 1:
            raise self.load_error
        self.fake.forget()
        if self.num_blocks_after is not None and self.num_starts > 1:
            self.fake.resize(self.num_blocks_after)
        self.death.clear()
        return await super().start()

    async def execute(self, plan: StepPlan) -> StepResult:
        self.num_steps += 1
        if self.dies_every is not None and self.num_steps % self.dies_every == 0:
            self.death.set()
        step = asyncio.ensure_future(super().execute(plan))
        dying = asyncio.ensure_future(self.death.wait())
        await asyncio.wait({step, dying}, return_when=asyncio.FIRST_COMPLETED)
        dying.cancel()
        if self.death.is_set():
            await asyncio.gather(step, return_exceptions=True)
            raise WorkerLost("killed", was_killed=self.was_killed)
        return await step

    async def watch(self) -> None:
        await self.death.wait()
        raise WorkerLost("killed", was_killed=self.was_killed)
