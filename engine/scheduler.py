"""Who runs in the next step, within a budget of tokens, rows and blocks. Sees no tensor, no text.

There are no phases: every sequence has tokens known and tokens computed, and a step closes the gap.
Decoding rows come first, then prefills by rank, in chunks. When blocks run out the running sequence
of the last rank is preempted and recomputed later, so the first always finishes.

Rank is the order of arrival, under the priority policy that of (priority, arrival). Who waits is
admitted by rank; so without priorities every running sequence is older than every waiting one,
unless one runs alone because it may be what kills workers.
"""

from bisect import insort
from dataclasses import dataclass
from itertools import pairwise

from engine.block_manager import BlockManager
from engine.config import SchedulerConfig
from engine.errors import EngineOverloaded, PromptTooLong, RequestError, UnsupportedOption
from engine.limits import ModelLimits
from engine.plan import RowPlan, RowResult, StepPlan, StepResult
from engine.quarantine import Quarantine
from engine.request import FinishReason, GenerationRequest
from engine.sequence import Sequence, SequenceStatus

_MAX_RETRY_AFTER_S = 120  # OpenAI's clients do not wait longer
_WATERMARK = 0.01  # share of the blocks that admission leaves free; at least one per running one


@dataclass(frozen=True, slots=True)
class Committed:
    """A sequence that moved in a step."""

    sequence: Sequence
    result: RowResult
    num_new_tokens: int  # of the result's tokens, those that became output


@dataclass(frozen=True, slots=True)
class _Share:
    """How many of a sequence's known tokens the step computes."""

    sequence: Sequence
    num_tokens: int


class Scheduler:
    """Waiting and running sequences, and their blocks."""

    def __init__(self, config: SchedulerConfig, limits: ModelLimits) -> None:
        self._config = config
        self._limits = limits
        # A row computes at least one token, so more rows than tokens would starve the youngest.
        self._max_rows = min(config.max_num_seqs, config.max_num_batched_tokens)
        self._blocks = BlockManager(limits.num_blocks, limits.block_size)
        self._waiting: list[Sequence] = []  # by rank, as the running ones
        self._running: list[Sequence] = []
        self._quarantine = Quarantine()
        self._ended: list[int] = []  # to tell the worker
        self._next_id = 0
        self._step_id = 0
        self.num_preemptions = 0
        self.num_prefix_queries = 0  # prompt tokens looked up in the prefix cache
        self.num_prefix_hits = 0  # of those, found

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

    def check_room(self, num_requests: int, num_tokens: int) -> None:
        """Whether so many more requests, with so many prompt tokens in all, may queue.

        Raises:
            EngineOverloaded: if not now.
            RequestError: if never, because they are too many together.
        """
        num_waiting, num_running = len(self._waiting), len(self._running)
        most = self._max_rows + self._config.max_num_queued_requests
        if num_requests > most:
            raise RequestError(f"At most {most} choices can be made at once.", param="n")
        is_full = num_waiting + num_running + num_requests > most
        most_tokens = self._config.max_num_queued_tokens
        if not is_full and most_tokens is not None:
            # Whoever finds nobody waiting is let in, however long.
            is_full = num_waiting > 0 and self._num_queued_tokens + num_tokens > most_tokens
        if is_full:
            waves = num_waiting // max(1, self._max_rows)
            raise EngineOverloaded(
                f"{num_waiting} requests are waiting already",
                retry_after_s=min(_MAX_RETRY_AFTER_S, 1 + waves),
            )

    @property
    def num_blocks_cached(self) -> int:
        """Blocks whose contents can be found, held or not."""
        return self._blocks.num_cached

    @property
    def _num_queued_tokens(self) -> int:
        return sum(sequence.num_tokens for sequence in self._waiting)

    def add(self, request: GenerationRequest) -> Sequence:
        """Queue a request.

        Raises:
            RequestError: if it could never run to its end.
            EngineOverloaded: if the queue is full.
        """
        self._refuse_unservable(request)
        self.check_room(1, len(request.prompt_token_ids))
        sequence = Sequence(
            self._next_id, request, self._limits.eos_token_ids, self._limits.max_model_len
        )
        self._next_id += 1
        insort(self._waiting, sequence, key=_rank)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """End a sequence for whose output nobody waits any more. Idempotent."""
        sequence.finish(FinishReason.ABORT)
        self.retire(sequence)

    def retire(self, sequence: Sequence) -> None:
        """Forget a finished sequence; its blocks are free at once. Idempotent.

        Safe while a step with it is in flight: the worker runs plans in order, so a later owner of
        a block writes before it reads.
        """
        self._quarantine.clear(sequence)
        if sequence in self._running:
            self._running.remove(sequence)
            self._ended.append(sequence.sequence_id)
            self._blocks.release(sequence.sequence_id)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def preempt_all(self) -> None:
        """The worker is gone: whatever it computed has to be computed again by another."""
        while self._running:
            self._preempt(self._running[-1])
        self._blocks.forget_all()
        self._ended.clear()

    def lose_worker(self, plan: StepPlan | None) -> list[Sequence]:
        """Preempt all, and find out who kills workers.

        Args:
            plan: The step that was in flight; None: the worker was idle.

        Returns:
            Sequences that have to be ended for it. The caller finishes and retires them.
        """
        rows = [] if plan is None else plan.rows
        in_flight = {row.sequence_id for row in rows}
        blamed = [sequence for sequence in self._running if sequence.sequence_id in in_flight]
        self.preempt_all()
        return self._quarantine.blame(blamed, is_alone=len(rows) == 1)

    def schedule(self) -> StepPlan | None:
        """The next step's plan; None if there is nothing to do."""
        # 1. Known tokens of running sequences, decoding ones first.
        num_preempted_before = self.num_preemptions
        budget = self._config.max_num_batched_tokens
        decoding = self._share_out(budget, decoding=True)
        budget -= sum(share.num_tokens for share in decoding)
        prefilling = self._share_out(budget, decoding=False)
        budget -= sum(share.num_tokens for share in prefilling)
        # 2. Waiting sequences, unless somebody has just had to make room.
        is_short = self.num_preemptions > num_preempted_before
        admitted = [] if is_short else self._admit(budget)
        # 3. Drafts, in the blocks that nobody needs.
        shares = [*decoding, *prefilling, *admitted]
        rows = [self._row(share) for share in shares]
        if not rows and not self._ended:
            return None
        ended, self._ended = self._ended, []
        self._step_id += 1
        return StepPlan(
            step_id=self._step_id,
            ended=ended,
            started=[share.sequence.start() for share in admitted],
            rows=rows,
        )

    def commit(self, plan: StepPlan, result: StepResult) -> list[Committed]:
        """Move cursors by what the worker did; rows of sequences that have ended are dropped."""
        assert plan.step_id == result.step_id, "results arrive in the order of their plans"
        by_id = {sequence.sequence_id: sequence for sequence in self._running}
        committed = []
        for row, outcome in zip(plan.rows, result.rows, strict=True):
            sequence = by_id.get(row.sequence_id)
            if sequence is not None:
                assert sequence.num_computed_tokens == row.start, "one step in flight at most"
                num_new = sequence.commit(row.num_tokens, outcome)
                self._publish(sequence)
                committed.append(Committed(sequence, outcome, num_new))
                if sequence.is_finished:
                    self.retire(sequence)
                elif num_new and self._quarantine.clear(sequence):
                    self._preempt(sequence)  # it ran before older ones
        return committed

    def check(self) -> None:
        """Assert the invariants that hold between any two calls."""
        self._blocks.check([sequence.sequence_id for sequence in self._running])
        for sequence in self._running:
            sequence.check()
            assert sequence.status is SequenceStatus.RUNNING
            held = len(self._blocks.table(sequence.sequence_id))
            most = sequence.num_tokens + self._max_drafts(sequence)
            assert held >= self._blocks.blocks_for(sequence.num_computed_tokens), "too few blocks"
            assert held <= self._blocks.blocks_for(most), "more blocks than drafts can need"
            num_full = sequence.num_computed_tokens // self._blocks.block_size
            num_published = self._blocks.num_published(sequence.sequence_id)
            assert num_published <= num_full, "a block is published before it is computed"
        assert all(s.status is SequenceStatus.WAITING for s in self._waiting)
        for group in (self._running, self._waiting):
            ranks = [_rank(sequence) for sequence in group]
            assert all(first < second for first, second in pairwise(ranks)), "a sequence overtook"
        if self._quarantine.suspect is not None:
            assert len(self._running) <= 1, "a suspect has company"
        elif self._config.policy == "fcfs" and self._running and self._waiting:
            assert _rank(self._running[-1]) < _rank(self._waiting[0]), "a sequence overtook"

    def _refuse_unservable(self, request: GenerationRequest) -> None:
        if request.priority != 0 and self._config.policy != "priority":
            message = "priority needs a server that runs with --scheduling-policy priority."
            raise UnsupportedOption(message, param="priority")
        _refuse_unbuilt(request)
        num_prompt, num_output = len(request.prompt_token_ids), request.sampling.max_tokens
        if num_prompt == 0:
            raise RequestError("The prompt is empty.", param="prompt")
        limit = self._limits.max_model_len
        if num_prompt + num_output > limit:
            raise PromptTooLong(
                f"This model's maximum context length is {limit} tokens, but "
                f"{num_prompt + num_output} were requested ({num_prompt} in the prompt, "
                f"{num_output} to generate).",
                param="max_tokens",
            )

    def _share_out(self, budget: int, *, decoding: bool) -> list[_Share]:
        """Shares of running sequences with one token to compute (decoding) or with more."""
        shares: list[_Share] = []
        for sequence in list(self._running):
            missing = sequence.num_tokens - sequence.num_computed_tokens
            if budget == 0 or (missing == 1) != decoding:
                continue
            share = _Share(sequence, min(missing, budget))
            if sequence.status is SequenceStatus.RUNNING and self._make_room(share):
                shares.append(share)
                budget -= share.num_tokens
        return shares

    def _make_room(self, share: _Share) -> bool:
        """Reserve blocks for known tokens: free ones, then drafts' surplus, then the last one's.

        Returns:
            False if the sequence was itself the last by rank and had to give way.
        """
        sequence = share.sequence
        until = sequence.num_computed_tokens + share.num_tokens
        if self._blocks.reserve(sequence.sequence_id, until):
            return True
        for other in self._running:
            self._blocks.trim(other.sequence_id, other.num_tokens)
        while not self._blocks.reserve(sequence.sequence_id, until):
            last = self._running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _admit(self, budget: int) -> list[_Share]:
        """Start waiting sequences by rank, while tokens, rows and blocks last."""
        admitted: list[_Share] = []
        while budget > 0 and len(self._running) < self._max_rows:
            sequence = self._next_waiting()
            if sequence is None:
                break
            prefix = self._cached_prefix(sequence)
            if not self._blocks.start(
                sequence.sequence_id, sequence.num_tokens, prefix, keep_free=self._headroom()
            ):
                break
            self._waiting.remove(sequence)  # the first of them, but for a suspect
            insort(self._running, sequence, key=_rank)
            num_cached = len(prefix) * self._blocks.block_size
            if sequence.admit(num_cached) and self._reads_cache(sequence):
                self.num_prefix_queries += sequence.num_prompt_tokens
                self.num_prefix_hits += num_cached
            share = _Share(sequence, min(sequence.num_tokens - num_cached, budget))
            admitted.append(share)
            budget -= share.num_tokens
        return admitted

    def _next_waiting(self) -> Sequence | None:
        """Who may start next."""
        suspect = self._quarantine.suspect
        if suspect is not None:
            return None if self._running else suspect
        return self._waiting[0] if self._waiting else None

    def _reads_cache(self, sequence: Sequence) -> bool:
        return self._config.prefix_caching

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the sequence's first tokens. Its last token is always computed: its
        logits are not kept.
        """
        if not self._reads_cache(sequence):
            return []
        size = self._blocks.block_size
        count = (sequence.num_tokens - 1) // size
        return self._blocks.find(sequence.block_hashes.first(count, sequence.token_ids, size))

    def _publish(self, sequence: Sequence) -> None:
        """Let others share the blocks that a finished step has filled with committed tokens."""
        if not self._config.prefix_caching:
            return
        if sequence.error is not None:
            self._blocks.forget(sequence.sequence_id)  # whatever is wrong may be in its cache
            return
        size = self._blocks.block_size
        count = sequence.num_computed_tokens // size
        if count > self._blocks.num_published(sequence.sequence_id):
            hashes = sequence.block_hashes.first(count, sequence.token_ids, size)
            self._blocks.publish(sequence.sequence_id, hashes)

    def _headroom(self) -> int:
        """Blocks to leave for those who run, lest the newcomer be preempted at once."""
        num_running = len(self._running)
        return max(num_running, int(self.num_blocks * _WATERMARK)) if num_running else 0

    def _row(self, share: _Share) -> RowPlan:
        """The row of a sequence whose known tokens have blocks; it drafts if there are more."""
        sequence, start = share.sequence, share.sequence.num_computed_tokens
        until = start + share.num_tokens
        is_decoding = until == sequence.num_tokens
        drafts = 0
        if is_decoding and share.num_tokens == 1:
            drafts = max(0, min(self._max_drafts(sequence), sequence.num_tokens_left - 1))
            if not self._blocks.reserve(sequence.sequence_id, until + drafts):
                drafts = 0
        return RowPlan(
            sequence_id=sequence.sequence_id,
            start=start,
            num_tokens=share.num_tokens,
            block_table=self._blocks.table(sequence.sequence_id),
            max_draft_tokens=drafts,
            is_decoding=is_decoding,
        )

    def _max_drafts(self, sequence: Sequence) -> int:
        """Drafts per step: the request's wish, else the server's; none without exit heads."""
        exits, limit = sequence.request.early_exit, self._limits.max_draft_tokens
        if not exits.enabled or limit == 0:
            return 0
        return limit if exits.max_draft_tokens is None else exits.max_draft_tokens

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._blocks.release(sequence.sequence_id)
        self._ended.append(sequence.sequence_id)
        sequence.preempt()
        insort(self._waiting, sequence, key=_rank)
        self.num_preemptions += 1


def _refuse_unbuilt(request: GenerationRequest) -> None:
    """Refuse by name what the worker does not compute yet, instead of ignoring it."""
    sampling = request.sampling
    for name, is_asked in (
        ("max_tokens", sampling.max_tokens < 1),
        ("prompt_logprobs", sampling.num_prompt_logprobs is not None),
        ("pooling", request.pooling is not None),
    ):
        if is_asked:
            raise UnsupportedOption(f"This {name} is not supported by the engine.", param=name)


def _rank(sequence: Sequence) -> tuple[int, int]:
    """Who goes first; ids are given in order of arrival."""
    return sequence.request.priority, sequence.sequence_id
