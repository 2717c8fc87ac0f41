"""The engine in the server's event loop: requests in, streams of outputs out. The façade the server programs against.

One task drives schedule → execute → commit → render; everything else only adds, aborts and reads, in the same loop, so
nothing needs a lock. While the worker computes a step, the outputs of the one before are rendered and handed out.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import EngineFailed, EngineStopped
from engine.output_slot import OutputSlot
from engine.plan import Worker
from engine.request import GenerationRequest, RequestOutput
from engine.scheduler import Committed, ModelLimits
from engine.stats import EngineStats
from engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_FAILED = "The engine failed; the request could not be finished."


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """Facts of the model being served."""

    max_model_len: int
    vocab_size: int
    num_layers: int
    exit_layers: list[int]  # empty: served plainly
    max_draft_tokens: int
    backend: str
    device: str
    dtype: str
    num_blocks: int
    block_size: int


class AsyncEngine:
    """One model, any number of concurrent requests."""

    def __init__(self, config: EngineConfig, worker: Worker, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.info: EngineInfo | None = None  # once started
        self._config = config
        self._worker = worker
        self._core: EngineCore | None = None
        self._slots: dict[str, OutputSlot] = {}
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.is_failed = False

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self._core is not None and not self._is_stopping and not self.is_failed

    async def start(self) -> None:
        """Load the model; returns when the first token could be made.

        Raises:
            ModelLoadError: if the model or its heads cannot be served.
        """
        info = await self._worker.start()
        limits = ModelLimits(
            num_blocks=info.num_blocks,
            block_size=info.block_size,
            max_model_len=info.max_model_len,
            max_draft_tokens=info.max_draft_tokens,
            eos_token_ids=tuple(info.eos_token_ids),
        )
        self.info = EngineInfo(
            max_model_len=info.max_model_len,
            vocab_size=info.vocab_size,
            num_layers=info.num_layers,
            exit_layers=list(info.exit_layers),
            max_draft_tokens=info.max_draft_tokens,
            backend=info.backend,
            device=info.device,
            dtype=info.dtype,
            num_blocks=info.num_blocks,
            block_size=info.block_size,
        )
        self._core = EngineCore(self._config.scheduler, limits, self.tokenizer, info.num_layers)
        self._task = asyncio.create_task(self._run(self._core), name="engine")

    async def stop(self, timeout_s: float = 0.0) -> None:
        """Take no more requests, let open ones finish for a while, end the rest, end the worker. Idempotent."""
        self._is_stopping = True
        if self._core is not None and timeout_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout_s)
        if self._core is not None:
            self._publish(self._core.fail_all("The server is shutting down."))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._worker.close()

    def stats(self) -> EngineStats:
        """Totals and present state."""
        return EngineStats() if self._core is None else self._core.stats()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[RequestOutput]:
        """Outputs of one request until its last, which has a finish reason. Closing the iterator aborts it.

        Raises:
            RequestError: if it can never run.
            EngineOverloaded: if too many are waiting.
            EngineStopped: if the engine is not started, or stopping.
            EngineFailed: if the engine has failed before.
        """
        if self.is_failed:
            raise EngineFailed(_FAILED)
        if self._core is None or self._is_stopping:
            raise EngineStopped("The server is starting up or shutting down.")
        self._core.add(request)
        slot = self._slots[request.request_id] = OutputSlot()
        self._idle.clear()
        self._work.set()
        try:
            while True:
                output = await slot.take()
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self._slots.pop(request.request_id, None)
            self._core.abort(request.request_id)
            self._work.set()
            if self._core.num_open == 0:
                self._idle.set()

    async def _run(self, core: EngineCore) -> None:
        try:
            await self._loop(core)
        except asyncio.CancelledError:
            raise
        except Exception:
            # The one place where anything is caught: every open request ends with it.
            logger.exception("the engine failed")
            self.is_failed = True
            self._publish(core.fail_all(_FAILED))

    async def _loop(self, core: EngineCore) -> None:
        committed: list[Committed] = []
        while True:
            plan = core.schedule()
            if plan is None and not committed:
                core.check()
                self._work.clear()
                await self._work.wait()
                continue
            step = None if plan is None else asyncio.create_task(self._worker.execute(plan))
            await asyncio.sleep(0)  # the plan is on its way before anything is rendered
            self._publish(core.render(committed))
            committed = []
            if step is not None and plan is not None:
                committed = core.commit(plan, await step)

    def _publish(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            slot = self._slots.get(output.request_id)
            if slot is not None:
                slot.put(output)
