"""The engine in the server's event loop: requests in, streams of outputs out.

One task drives schedule → execute → commit → render; everything else only adds, aborts and reads,
in the same event loop, so nothing needs a lock. While the worker computes a step, the outputs of
the previous step are rendered and handed out.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter

from engine.config import EngineConfig
from engine.core import EngineCore
from engine.errors import EngineFailed, EngineStopped, WorkerLost
from engine.grammar.approver import Approver
from engine.limits import ModelLimits
from engine.output_slot import OutputSlot, next_output
from engine.paced_slot import PacedSlot
from engine.plan import StepPlan, Worker, WorkerInfo
from engine.request import FinishReason, GenerationRequest, RequestOutput, Structure
from engine.scheduler import Committed
from engine.stats import EngineStats
from engine.supervisor import Supervisor
from engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_FAILED = "The engine failed; the request could not be finished."
_ANY_OBJECT = Structure(kind="json_object")
_CHECK_INTERVAL_S = 60.0  # between checks of the invariants, which are made only when idle


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """Facts about the model being served; a new worker may change the number of KV blocks."""

    max_model_len: int  # tokens of a request, prompt and output; at most what the KV cache holds
    vocab_size: int
    num_layers: int
    hidden_size: int  # length of an embedding
    exit_layers: list[int]
    has_lookup: bool  # whether it drafts by prompt look-up
    max_draft_tokens: int
    backend: str
    device: str
    dtype: str  # of activations
    numbers: str  # dtype, and what weights are kept as if that is another; for people
    num_blocks: int
    block_size: int


class AsyncEngine:
    """Serves any number of concurrent requests with one model."""

    def __init__(self, config: EngineConfig, worker: Worker, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.info: EngineInfo | None = None  # set by `start`
        self._config = config
        self._supervisor = Supervisor(worker)
        self._approver: Approver | None = None
        self._warming: asyncio.Task[None] | None = None
        self._core: EngineCore | None = None
        self._slots: dict[str, OutputSlot] = {}
        self._is_even = config.exits.target_itl_s is not None  # use `PacedSlot`
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._last_check = 0.0
        self.fatal_error: Exception | None = None  # why no request can be served any more

    @property
    def is_failed(self) -> bool:
        """Whether the engine has failed for good."""
        return self.fatal_error is not None

    @property
    def is_recovering(self) -> bool:
        """Whether a lost worker is being replaced; requests wait for the new one."""
        return self._supervisor.is_recovering

    @property
    def is_ready(self) -> bool:
        """Whether new requests are accepted."""
        return self._core is not None and not self._is_stopping and not self.is_failed

    async def start(self) -> None:
        """Load the model and return when the first step can run.

        Raises:
            ModelLoadError: The model or its heads cannot be served.
        """
        info = await self._supervisor.start()
        limits = ModelLimits.of(info)
        if limits.max_model_len < info.max_model_len:
            logger.warning(
                "the KV cache holds %d tokens, so requests are limited to that, although the model "
                "could take %d: give it more memory (--kv-cache-memory)",
                limits.max_model_len,
                info.max_model_len,
            )
        self.info = _engine_info(info, limits)
        self._approver = Approver(
            self._config.model.directory,
            info.vocab_size,
            info.eos_token_ids,
            self._config.structure.timeout_s,
        )
        self._core = EngineCore(self._config.scheduler, limits, self.tokenizer, info.num_layers)
        self._task = asyncio.create_task(self._run(self._core), name="engine")

    async def stop(self, timeout_s: float = 0.0) -> None:
        """Accept no more requests, let open ones finish, then end the rest and the worker.

        Requests ended here get FinishReason.ABORT. Idempotent.

        Args:
            timeout_s: How long open requests may take to finish.
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
        if self._approver is not None:
            await self._approver.close()
        await self._supervisor.close()
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)

    def stats(self) -> EngineStats:
        """Return the totals and the present state."""
        stats = EngineStats() if self._core is None else self._core.stats()
        stats.worker_restarts_total = self._supervisor.num_restarts
        stats.recovery_time_s_total = self._supervisor.recovery_time_s_total
        return stats

    @property
    def num_unread(self) -> int:
        """The number of requests whose outputs are still being read, or not read yet."""
        return len(self._slots)

    def check(self) -> None:
        """Assert the invariants that hold between steps."""
        if self._core is not None:
            self._core.check()

    def check_room(self, num_requests: int = 1, num_tokens: int = 0) -> None:
        """Raise unless `num_requests` more requests would be accepted now.

        Args:
            num_requests: How many new requests there would be.
            num_tokens: Prompt tokens of all of them.

        Raises:
            TooManyChoices: The queue can never hold that many requests.
            EngineOverloaded: Too many requests are waiting now.
            EngineStopped: The engine is not started, or is stopping.
            EngineFailed: The engine has failed.
        """
        self._running_core().check_room(num_requests, num_tokens)

    def admit(self, requests: Sequence[GenerationRequest]) -> list[OutputSlot]:
        """Queue all of the requests or none; each runs until it is finished or aborted.

        Returns:
            The slot in which each request's outputs arrive.

        Raises:
            RequestError: One of the requests can never run.
            EngineOverloaded: Too many requests are waiting.
            EngineStopped: The engine is not started, or is stopping.
            EngineFailed: The engine has failed.
        """
        self._running_core().add_all(requests)
        make = PacedSlot if self._is_even else OutputSlot
        slots = {each.request_id: make(each.output_interval) for each in requests}
        self._slots |= slots
        self._idle.clear()
        self._work.set()
        return list(slots.values())

    async def approve(self, structure: Structure) -> None:
        """Check that a structure can be followed, and have the worker compile it in advance.

        Raises:
            StructureError: It cannot be followed; the message says why.
            EngineOverloaded: It cannot be checked now.
            EngineStopped: See `admit`.
            EngineFailed: See `admit`.
        """
        self._running_core()
        assert self._approver is not None, "a started engine has one"
        if self._warming is None:  # the worker loads xgrammar while the approver does
            self._warming = asyncio.create_task(self._supervisor.prepare(_ANY_OBJECT))
        await self._approver.approve(structure)
        await self._supervisor.prepare(structure)

    def abort(self, request_id: str) -> None:
        """End a request whose output nobody waits for any more. Idempotent."""
        self._slots.pop(request_id, None)
        if self._core is not None:
            self._core.abort(request_id)
            self._work.set()
            if self._core.num_open == 0:
                self._idle.set()

    def has_started(self, request_id: str) -> bool:
        """Whether a request has ever run; True for one that is no longer open."""
        return self._core is None or self._core.has_started(request_id)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        """Yield a request's outputs; the last one has a finish reason.

        Closing the generator aborts the request.

        Raises:
            EngineError: The engine failed, or, for a request that was not admitted before, what
                `admit` raises.
        """
        if request.request_id not in self._slots:
            self.admit([request])
        slot = self._slots[request.request_id]
        try:
            while True:
                output = await next_output(slot)
                yield output
                if output.finish_reason is not None:
                    return
        finally:
            self.abort(request.request_id)

    def _running_core(self) -> EngineCore:
        if self.is_failed:
            raise EngineFailed(_FAILED)
        if self._core is None or self._is_stopping:
            raise EngineStopped("The server is starting up or shutting down.")
        return self._core

    async def _run(self, core: EngineCore) -> None:
        """Step until cancelled; if that fails for good, end every open request."""
        try:
            await self._loop(core)
        except EngineFailed as error:
            logger.error("the engine failed: %s", error)
            self._fail(core, error)
        except Exception as error:
            logger.exception("the engine failed")
            self._fail(core, error)

    def _fail(self, core: EngineCore, error: Exception) -> None:
        self.fatal_error = error
        core.end_all(FinishReason.ERROR, _FAILED)
        for slot in list(self._slots.values()):
            slot.fail(EngineFailed(_FAILED))

    async def _loop(self, core: EngineCore) -> None:
        committed: list[Committed] = []
        plan: StepPlan | None = None
        while True:
            try:
                self._work.clear()
                plan = core.schedule()
                if plan is None:
                    self._publish(core.render(committed, one_by_one=self._is_even))
                    committed = []
                    await self._rest()
                else:
                    committed = await self._step(core, plan, committed)
            except WorkerLost as loss:
                committed = []  # already rendered: that comes before waiting for the worker
                await self._recover(core, plan, loss)

    async def _step(
        self, core: EngineCore, plan: StepPlan, committed: list[Committed]
    ) -> list[Committed]:
        """Execute a plan and, while the worker computes it, render the previous step."""
        result = self._supervisor.execute(plan)
        self._publish(core.render(committed, one_by_one=self._is_even))
        committed = core.commit(plan, await result)
        if any(item.num_new_tokens or item.sequence.is_finished for item in committed):
            self._supervisor.note_progress()
        return committed

    async def _rest(self) -> None:
        """Wait for work; a worker that dies meanwhile is noticed at once."""
        now = asyncio.get_running_loop().time()
        if now - self._last_check > _CHECK_INTERVAL_S:
            self._last_check = now
            self.check()
        watching = asyncio.create_task(self._supervisor.watch())
        working = asyncio.create_task(self._work.wait())
        try:
            await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()  # raises
        finally:
            watching.cancel()
            working.cancel()

    async def _recover(self, core: EngineCore, plan: StepPlan | None, loss: WorkerLost) -> None:
        """Start a new worker, which computes again what was lost with the old one."""
        guilty = core.lose_worker(plan, loss)
        self._publish(guilty)
        if guilty:
            self._supervisor.note_progress()
        logger.warning("%d open requests wait for a new worker", core.num_open)
        info = await self._supervisor.replace(loss)
        assert self.info is not None, "a started engine knows its model"
        if info.num_blocks != self.info.num_blocks:
            logger.warning("KV blocks: %d instead of %d", info.num_blocks, self.info.num_blocks)
            limits = ModelLimits.of(info)
            self.info = _engine_info(info, limits)
            self._publish(core.adapt(limits))
        # A step waits for a structure that is not ready, and its timeout does not allow for that.
        for structure in core.structures():
            await self._supervisor.prepare(structure)

    def _publish(self, outputs: list[RequestOutput]) -> None:
        if self._is_even:
            for request_id, step in itertools.groupby(outputs, attrgetter("request_id")):
                slot = self._slots.get(request_id)
                if slot is not None:
                    slot.put_step(list(step))
            return
        for output in outputs:
            slot = self._slots.get(output.request_id)
            if slot is not None:
                slot.put(output)


def _engine_info(info: WorkerInfo, limits: ModelLimits) -> EngineInfo:
    return EngineInfo(
        max_model_len=limits.max_model_len,
        vocab_size=info.vocab_size,
        num_layers=info.num_layers,
        hidden_size=info.hidden_size,
        exit_layers=list(info.exit_layers),
        has_lookup=info.has_lookup,
        max_draft_tokens=info.max_draft_tokens,
        backend=info.backend,
        device=info.device,
        dtype=info.dtype,
        numbers=info.numbers,
        num_blocks=info.num_blocks,
        block_size=info.block_size,
    )
