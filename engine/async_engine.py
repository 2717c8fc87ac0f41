"""The engine in the server's event loop: requests in, streams of outputs out.

One task drives schedule → execute → commit → render; everything else only adds, aborts and reads,
in the same loop, so nothing needs a lock. While the worker computes a step, the outputs of the one
before are rendered and handed out.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import EngineFailed, EngineStopped
from engine.limits import ModelLimits
from engine.output_slot import OutputSlot
from engine.plan import Worker, WorkerInfo
from engine.request import FinishReason, GenerationRequest, RequestOutput
from engine.scheduler import Committed
from engine.stats import EngineStats
from engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_FAILED = "The engine failed; the request could not be finished."


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """Facts of the model being served."""

    max_model_len: int  # prompt and output of a request; never more than the KV cache holds
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
        limits = ModelLimits.of(info)
        if limits.max_model_len < info.max_model_len:
            logger.warning(
                "the KV cache holds %d tokens, so requests are limited to that, although the model "
                "could take %d: give it more memory (--kv-cache-memory)",
                limits.max_model_len,
                info.max_model_len,
            )
        self.info = _engine_info(info, limits)
        self._core = EngineCore(self._config.scheduler, limits, self.tokenizer, info.num_layers)
        self._task = asyncio.create_task(self._run(self._core), name="engine")

    async def stop(self, timeout_s: float = 0.0) -> None:
        """Take no more requests, let open ones finish for a while, end the rest and the worker.

        Idempotent. Requests that are ended have FinishReason.ABORT.
        """
        self._is_stopping = True
        if self._core is not None and timeout_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout_s)
        if self._core is not None:
            self._publish(self._core.end_all(FinishReason.ABORT))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._worker.close()

    def stats(self) -> EngineStats:
        """Totals and present state."""
        return EngineStats() if self._core is None else self._core.stats()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        """Outputs of one request until its last, which has a finish reason. Closing it aborts.

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
        """Step until cancelled; when a step or the worker fails, every open request ends."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._loop(core))
                group.create_task(self._worker.watch())
        except* EngineFailed as failures:
            logger.error("the engine failed: %s", failures.exceptions[0])
            self._fail(core)
        except* Exception:
            logger.exception("the engine failed")
            self._fail(core)

    def _fail(self, core: EngineCore) -> None:
        self.is_failed = True
        self._publish(core.end_all(FinishReason.ERROR, _FAILED))

    async def _loop(self, core: EngineCore) -> None:
        committed: list[Committed] = []
        while True:
            self._work.clear()
            plan = core.schedule()
            if plan is None:
                self._publish(core.render(committed))
                committed = []
                await self._work.wait()
                continue
            step = asyncio.create_task(self._worker.execute(plan))
            try:
                await asyncio.sleep(0)  # the plan is on its way before anything is rendered
                self._publish(core.render(committed))
                committed = core.commit(plan, await step)
            finally:
                step.cancel()  # matters only when this task is itself cancelled

    def _publish(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            slot = self._slots.get(output.request_id)
            if slot is not None:
                slot.put(output)


def _engine_info(info: WorkerInfo, limits: ModelLimits) -> EngineInfo:
    return EngineInfo(
        max_model_len=limits.max_model_len,
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
