"""Decides what the next step computes, within a budget of tokens. Sees no tensor, no text.

Prefill and decode are not separate phases: every sequence has known tokens, some of them computed,
and steps close the gap. Decoding rows come first, then prefills by rank, in chunks, then sequences
that start. The admission rules decide who may queue, the roster who runs and who is preempted.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import TypeAlias

from engine.admission import AdmissionRules
from engine.block_manager import BlockManager
from engine.config import SchedulerConfig
from engine.errors import WorkerLost
from engine.limits import ModelLimits
from engine.plan import RowPlan, RowResult, StepPlan, StepResult
from engine.prefix_cache import PrefixCache
from engine.request import FinishReason, GenerationRequest
from engine.roster import Roster
from engine.sequence import Sequence, SequenceStatus


@dataclass(slots=True)  # made for every token: frozen or kw_only would take twice as long
class Committed:
    """A sequence that took part in a step, and what it got."""

    sequence: Sequence
    result: RowResult
    num_new_tokens: int  # how many of the result's tokens became output


_Share: TypeAlias = tuple[Sequence, int]  # a sequence, and how many of its tokens to compute


class Scheduler:
    """Turns requests into step plans and applies the plans' results."""

    def __init__(self, config: SchedulerConfig, limits: ModelLimits) -> None:
        self._config = config
        self._limits = limits
        self._rules = AdmissionRules(config, limits)
        self._blocks = BlockManager(limits.num_blocks, limits.block_size)
        self._cache = PrefixCache(self._blocks, is_on=config.prefix_caching)
        self._roster = Roster(self._blocks, self._cache, by_priority=config.policy == "priority")
        self._next_id = 0
        self._step_id = 0

    @property
    def num_waiting(self) -> int:
        """The number of sequences that wait to run."""
        return len(self._roster.waiting)

    @property
    def num_running(self) -> int:
        """The number of sequences that run, with blocks."""
        return len(self._roster.running)

    @property
    def num_blocks(self) -> int:
        """The total number of blocks."""
        return self._blocks.num_blocks

    @property
    def num_blocks_used(self) -> int:
        """The number of blocks held by sequences."""
        return self._blocks.num_blocks - self._blocks.num_free

    @property
    def num_blocks_cached(self) -> int:
        """The number of blocks whose contents can be found, held or not."""
        return self._blocks.num_cached

    @property
    def num_preemptions(self) -> int:
        """How many times a running sequence was preempted."""
        return self._roster.num_preemptions

    @property
    def num_prefix_queries(self) -> int:
        """How many prompt tokens were looked up in the prefix cache."""
        return self._cache.num_queries

    @property
    def num_prefix_hits(self) -> int:
        """How many prompt tokens were found in the prefix cache."""
        return self._cache.num_hits

    @property
    def num_prefix_misses(self) -> int:
        """How many prompt tokens were not found in the prefix cache, looked up or not."""
        return self._cache.num_misses

    def check_room(self, num_requests: int, num_tokens: int) -> None:
        """See `AdmissionRules.check_room`."""
        self._rules.check_room(
            num_requests,
            num_tokens,
            num_running=self.num_running,
            waiting=self._roster.waiting,
        )

    def add(self, request: GenerationRequest) -> Sequence:
        """Queue a request; raises what `add_all` raises."""
        return self.add_all([request])[0]

    def add_all(self, requests: Many[GenerationRequest]) -> list[Sequence]:
        """Queue all of the requests, or none of them.

        Raises:
            RequestError: One of them could never run to its end.
            EngineOverloaded: The queue has no room for all of them.
        """
        for request in requests:
            self._rules.check_servable(request)
        num_tokens = sum(len(request.prompt_token_ids) for request in requests)
        self.check_room(len(requests), num_tokens)
        return [self._queue(request) for request in requests]

    def _queue(self, request: GenerationRequest) -> Sequence:
        limits = self._limits
        sequence = Sequence(self._next_id, request, limits.eos_token_ids, limits.max_model_len)
        self._next_id += 1
        self._roster.add(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """End a sequence whose output nobody waits for any more. Idempotent."""
        sequence.finish(FinishReason.ABORT)
        self.retire(sequence)

    def retire(self, sequence: Sequence) -> None:
        """See `Roster.retire`."""
        self._roster.retire(sequence)

    def lose_worker(self, plan: StepPlan | None, loss: WorkerLost) -> list[Sequence]:
        """See `Roster.lose_worker`."""
        return self._roster.lose_worker(plan, loss)

    def adapt(self, limits: ModelLimits) -> list[Sequence]:
        """Adapt to a new worker with another number of blocks; no sequence may be running.

        Returns:
            Sequences that are too long for it, which the caller has to finish and retire.
        """
        self._limits = limits
        self._rules = AdmissionRules(self._config, limits)
        self._blocks.resize(limits.num_blocks)
        waiting = list(self._roster.waiting)
        return [each for each in waiting if not each.adapt(limits.max_model_len)]

    def schedule(self) -> StepPlan | None:
        """Return the next step's plan; None if there is nothing to do."""
        # 1. Known tokens of running sequences, decoding ones first.
        num_preempted_before = self.num_preemptions
        budget = self._config.max_num_batched_tokens
        missing = [(each, each.num_missing_tokens) for each in self._roster.running]
        decoding = [share for share in missing if share[1] == 1]
        prefilling = [share for share in missing if share[1] > 1]
        shares = self._share_out(decoding + prefilling, budget)
        budget -= sum([num_tokens for _, num_tokens in shares])
        # 2. Waiting sequences, unless one has just been preempted.
        is_short = self.num_preemptions > num_preempted_before
        admitted = [] if is_short else self._admit(budget)
        # 3. Drafts, in the blocks that are left.
        rows = [self._row(sequence, num_tokens) for sequence, num_tokens in shares + admitted]
        if not rows and not self._roster.has_ended:
            return None
        self._step_id += 1
        return StepPlan(
            step_id=self._step_id,
            ended=self._roster.take_ended(),
            started=[sequence.start() for sequence, _ in admitted],
            rows=rows,
        )

    def commit(self, plan: StepPlan, result: StepResult) -> list[Committed]:
        """Apply a step's result; rows of sequences that have ended meanwhile are dropped."""
        assert plan.step_id == result.step_id, "results arrive in the order of their plans"
        by_id = {sequence.sequence_id: sequence for sequence in self._roster.running}
        is_wary = self._roster.is_wary
        committed = []
        for row, outcome in zip(plan.rows, result.rows, strict=True):
            sequence = by_id.get(row.sequence_id)
            if sequence is not None:
                assert sequence.num_computed_tokens == row.start, "one step in flight at most"
                num_new = sequence.commit(row.num_tokens, outcome)
                self._cache.publish(sequence)
                committed.append(Committed(sequence, outcome, num_new))
                if sequence.finish_reason is not None:
                    self.retire(sequence)
                elif num_new and is_wary:
                    self._roster.note_progress(sequence)
        return committed

    def check(self) -> None:
        """Assert the invariants that hold between any two calls."""
        self._roster.check()
        for sequence in self._roster.running:
            held = len(self._blocks.table(sequence.sequence_id))
            most = sequence.num_tokens + self._max_room(sequence)
            assert held <= self._blocks.blocks_for(most), "more blocks than drafts can need"

    def _share_out(self, missing: Iterable[_Share], budget: int) -> list[_Share]:
        """Share the budget out among running sequences, in this order, and reserve their blocks."""
        shares: list[_Share] = []
        for sequence, num_missing in missing:
            if budget == 0:
                break
            num_tokens = num_missing if num_missing < budget else budget
            until = sequence.num_computed_tokens + num_tokens
            is_running = sequence.status is SequenceStatus.RUNNING  # not preempted for another one
            if is_running and self._roster.make_room(sequence, until):
                shares.append((sequence, num_tokens))
                budget -= num_tokens
        return shares

    def _admit(self, budget: int) -> list[_Share]:
        """Start waiting sequences within the budget; returns their shares."""
        admitted: list[_Share] = []
        if budget == 0:
            return admitted
        for sequence in self._roster.admit(most=self._rules.max_rows):
            num_tokens = min(sequence.num_missing_tokens, budget)
            admitted.append((sequence, num_tokens))
            budget -= num_tokens
            if budget == 0:
                break
        return admitted

    def _row(self, sequence: Sequence, num_tokens: int) -> RowPlan:
        """Return the row of a sequence whose known tokens have blocks.

        If there are more blocks, it may draft, or have its next pass launched ahead.
        """
        sequence_id, start = sequence.sequence_id, sequence.num_computed_tokens
        until = start + num_tokens
        is_decoding = until == len(sequence.token_ids) and sequence.generates
        drafts = 0
        if is_decoding and num_tokens == 1 and (most := self._max_room(sequence)):
            room = max(0, min(most, sequence.num_tokens_left - 1))
            if room and self._blocks.reserve(sequence_id, until + room):
                drafts = min(self._max_drafts(sequence), room)
        table = self._blocks.table(sequence_id)
        return RowPlan(sequence_id, start, num_tokens, table, drafts, is_decoding)

    def _max_room(self, sequence: Sequence) -> int:
        """Return how many positions after the known tokens to reserve, if there are blocks."""
        return max(self._max_drafts(sequence), self._limits.num_tokens_ahead)

    def _max_drafts(self, sequence: Sequence) -> int:
        """Return the most drafts per step: the server's number, or the request's if that is less.

        It is 0 if the worker has nothing that drafts, neither exit heads nor prompt look-up, or if
        the request asks for no early exits.
        """
        limit, exits = self._limits.max_draft_tokens, sequence.request.early_exit
        if limit == 0 or not exits.enabled:
            return 0
        return limit if exits.max_draft_tokens is None else min(limit, exits.max_draft_tokens)
