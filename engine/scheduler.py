"""Who runs in the next step, within a budget of tokens, sequences and blocks. Owns sequences; sees no tensor, no text.

There are no phases: every sequence has tokens known and tokens computed, and a step closes the gap. Decoding rows
come first, then prefills in order of arrival, in chunks. When blocks run out the youngest running sequence is
preempted and recomputed later, so the oldest always finishes.
"""

from collections import deque
from dataclasses import dataclass

from engine.block_manager import BlockManager
from engine.config import SchedulerConfig
from engine.errors import EngineOverloaded, PromptTooLong
from engine.plan import RowPlan, RowResult, StepPlan, StepResult
from engine.request import FinishReason, GenerationRequest
from engine.sequence import Sequence, SequenceStatus

_WATERMARK = 0.01  # share of blocks kept free when a new sequence is admitted


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What the worker and the model allow."""

    num_blocks: int
    block_size: int
    max_model_len: int
    max_draft_tokens: int  # 0: no exit heads
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """A sequence that moved in a step."""

    sequence: Sequence
    result: RowResult
    num_new_tokens: int  # of the result's tokens, those that became output


class Scheduler:
    """Waiting and running sequences, and their blocks."""

    def __init__(self, config: SchedulerConfig, limits: ModelLimits) -> None:
        self._config = config
        self._limits = limits
        self._blocks = BlockManager(limits.num_blocks, limits.block_size)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in order of admission
        self._ended: list[int] = []  # to tell the worker
        self._next_id = 0
        self._step_id = 0
        self.num_preemptions = 0

    @property
    def num_waiting(self) -> int:
        """Sequences not running."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences with blocks."""
        return len(self._running)

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self._blocks.num_blocks

    @property
    def num_blocks_used(self) -> int:
        """Blocks held by sequences."""
        return self._blocks.num_blocks - self._blocks.num_free

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting or self._running or self._ended)

    def add(self, request: GenerationRequest) -> Sequence:
        """Queue a request.

        Raises:
            PromptTooLong: if it could never run to its end.
            EngineOverloaded: if the queue is full.
        """
        self._refuse_too_long(request)
        if len(self._waiting) >= self._config.max_num_queued_requests:
            raise EngineOverloaded(f"{len(self._waiting)} requests are waiting already")
        sequence = Sequence(
            self._next_id, request, self._limits.eos_token_ids, self._limits.max_model_len
        )
        self._next_id += 1
        self._waiting.append(sequence)
        return sequence

    def abort(self, sequence: Sequence, reason: FinishReason = FinishReason.ABORT) -> None:
        """End a sequence now and free its blocks. Idempotent."""
        sequence.finish(reason)
        self.retire(sequence)

    def retire(self, sequence: Sequence) -> None:
        """Forget a finished sequence; its blocks are free at once.

        Safe while a step with it is in flight: the worker runs plans in order, so a later owner of a block writes
        before it reads.
        """
        if sequence in self._running:
            self._running.remove(sequence)
            self._ended.append(sequence.sequence_id)
            self._blocks.release(sequence.sequence_id)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def preempt_all(self) -> None:
        """The worker is gone: everything known has to be computed again."""
        for sequence in reversed(list(self._running)):
            self._preempt(sequence)
        self._ended.clear()

    def schedule(self) -> StepPlan | None:
        """The next step's plan; None if there is nothing to do."""
        picked: list[tuple[Sequence, int]] = []
        budget = self._config.max_num_batched_tokens
        budget = self._pick_running(picked, budget, decoding=True)
        budget = self._pick_running(picked, budget, decoding=False)
        started = self._admit(picked, budget)
        # Rows come last: one may have been preempted for another, and drafts only get blocks nobody needs.
        rows = [self._row(s, n) for s, n in picked if s.status is SequenceStatus.RUNNING]
        if not rows and not self._ended:
            return None
        ended, self._ended = self._ended, []
        self._step_id += 1
        return StepPlan(
            step_id=self._step_id,
            ended=ended,
            started=[sequence.start() for sequence in started],
            rows=rows,
        )

    def commit(self, plan: StepPlan, result: StepResult) -> list[Committed]:
        """Move cursors by what the worker did. Rows of sequences that ended or were preempted meanwhile are dropped."""
        assert plan.step_id == result.step_id, "results arrive in the order of their plans"
        by_id = {sequence.sequence_id: sequence for sequence in self._running}
        committed = []
        for row, outcome in zip(plan.rows, result.rows, strict=True):
            sequence = by_id.get(row.sequence_id)
            if sequence is None or sequence.num_computed_tokens != row.start:
                continue
            num_new = sequence.commit(row.num_tokens, outcome)
            committed.append(Committed(sequence, outcome, num_new))
        return committed

    def check(self) -> None:
        """Assert the invariants."""
        self._blocks.check()
        for sequence in self._running:
            sequence.check()
            assert sequence.status is SequenceStatus.RUNNING or sequence.is_finished
            held = len(self._blocks.table(sequence.sequence_id))
            assert held >= self._blocks.blocks_for(sequence.num_computed_tokens)
        assert all(s.status is SequenceStatus.WAITING for s in self._waiting)

    def _refuse_too_long(self, request: GenerationRequest) -> None:
        total = len(request.prompt_token_ids) + request.sampling.max_tokens
        limit = self._limits.max_model_len
        if total > limit:
            raise PromptTooLong(
                f"This model's maximum context length is {limit} tokens, but {total} were requested "
                f"({len(request.prompt_token_ids)} in the prompt, {request.sampling.max_tokens} to "
                "generate).",
                param="max_tokens",
            )
        capacity = self._blocks.num_blocks * self._limits.block_size
        if total > capacity:
            raise PromptTooLong(
                f"The KV cache holds {capacity} tokens, but {total} were requested.",
                param="max_tokens",
            )

    def _pick_running(
        self, picked: list[tuple[Sequence, int]], budget: int, *, decoding: bool
    ) -> int:
        """Running sequences with one token to compute (decoding) or with more; returns the budget left."""
        for sequence in list(self._running):
            if sequence.status is not SequenceStatus.RUNNING or budget <= 0:
                continue
            missing = sequence.num_tokens - sequence.num_computed_tokens
            num_tokens = min(missing, budget)
            if (missing == 1) == decoding and self._fits(sequence, num_tokens):
                picked.append((sequence, num_tokens))
                budget -= num_tokens
        return budget

    def _fits(self, sequence: Sequence, num_tokens: int) -> bool:
        """Reserve blocks for the known tokens, preempting younger sequences if need be."""
        until = sequence.num_computed_tokens + num_tokens
        while not self._blocks.reserve(sequence.sequence_id, until):
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _row(self, sequence: Sequence, num_tokens: int) -> RowPlan:
        """The row of a sequence whose known tokens are reserved; drafts only where room for them is free anyway."""
        start = sequence.num_computed_tokens
        is_decoding = start + num_tokens == sequence.num_tokens
        drafts = self._draft_budget(sequence) if is_decoding and num_tokens == 1 else 0
        if drafts and not self._blocks.reserve(sequence.sequence_id, start + 1 + drafts):
            drafts = 0
        return RowPlan(
            sequence_id=sequence.sequence_id,
            start=start,
            num_tokens=num_tokens,
            block_table=self._blocks.table(sequence.sequence_id),
            max_draft_tokens=drafts,
            is_decoding=is_decoding,
        )

    def _draft_budget(self, sequence: Sequence) -> int:
        exits = sequence.request.early_exit
        if not exits.enabled:
            return 0
        most = self._limits.max_draft_tokens
        if exits.max_draft_tokens is not None and most > 0:
            most = exits.max_draft_tokens
        return max(0, min(most, sequence.num_tokens_left - 1))

    def _admit(self, picked: list[tuple[Sequence, int]], budget: int) -> list[Sequence]:
        """Start waiting sequences, first come first served, while tokens, rows and blocks last."""
        started: list[Sequence] = []
        reserve = int(self._blocks.num_blocks * _WATERMARK) if self._running else 0
        while self._waiting and budget > 0 and len(self._running) < self._config.max_num_seqs:
            sequence = self._waiting[0]
            if not self._blocks.reserve(
                sequence.sequence_id, sequence.num_tokens, keep_free=reserve
            ):
                break
            self._waiting.popleft()
            sequence.status = SequenceStatus.RUNNING
            self._running.append(sequence)
            started.append(sequence)
            picked.append((sequence, min(sequence.num_tokens, budget)))
            budget -= picked[-1][1]
        return started

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._blocks.release(sequence.sequence_id)
        self._ended.append(sequence.sequence_id)
        sequence.preempt()
        self._waiting.appendleft(sequence)
        self.num_preemptions += 1
