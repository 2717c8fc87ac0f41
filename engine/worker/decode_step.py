"""The AdaDecode step: draft at exit layers, finish deferred layers in parallel, verify once, accept
a prefix.

Every row's newest token enters segment 0, together with the drafts that prompt look-up found to
follow it. After each segment the exit head there is evaluated for rows whose newest token has just
arrived: look-up drafts that it finds unlikely are dropped, rows for which it is sure enough get a
draft, and new drafts start again at segment 0. Tokens that left early wait at the boundary after
their exit and go on together with their successors:

    boundary 0 ─ segment 0 ─ exit 0 ─ boundary 1 ─ segment 1 ─ exit 1 ─ … ─ last segment ─ verify

A draft's place may have a second candidate, an alternate: it enters segment 0 like a draft, has a
spare slot, and nothing follows it. If it turns out right, its keys and values are copied to the
slot of its position.

If nothing is drafted, as while the policy pauses or no evaluation would pay, all segments run one
after the other, as one call if the runner has one. If the next step is foreseeable, its call is
made before this step's tokens are read (see `run_ahead`).

Invariants: a token is never deeper than an older token of its row; drafts live inside one step;
rollback moves cursors, never bytes. Prefill tokens ride along and never exit. The step knows plans
and states, but no scheduler.

Source: AdaDecode, Wei et al. 2025, arXiv 2506.03700, algorithm 1, here for any number of rows.
"""

import itertools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.model.decoder import Decoder, Segment
from engine.plan import RowPlan, RowResult
from engine.worker.acceptance import Acceptance
from engine.worker.drafter import Drafter
from engine.worker.exit_evaluator import Arrival
from engine.worker.forward_batch import BlockTables, ForwardBatch, TokenRef
from engine.worker.kv_cache import KvCache
from engine.worker.learning.recorder import Recorder
from engine.worker.prompt_reader import wants_reading
from engine.worker.row import Row
from engine.worker.row_gather import take_rows
from engine.worker.run_ahead import RunAhead
from engine.worker.segment_runner import EagerRunner, SegmentRunner
from engine.worker.sequence_state import SequenceState
from engine.worker.step_estimate import StepEstimate
from engine.worker.verifier import Verifier

Clock = Callable[[], float]


class Boundary:
    """Tokens waiting before a segment, older tokens of a row first."""

    def __init__(self) -> None:
        self._refs: list[TokenRef] = []
        self._hidden: list[Tensor] = []

    def put(self, refs: Sequence[TokenRef], hidden: Tensor) -> None:
        """Add tokens and their hidden states [T, E]."""
        self._refs.extend(refs)
        self._hidden.append(hidden)

    def take(self) -> tuple[list[TokenRef], Tensor]:
        """Remove and return all waiting tokens and their hidden states [T, E]."""
        refs, hidden = self._refs, self._hidden
        self._refs, self._hidden = [], []
        return refs, hidden[0] if len(hidden) == 1 else torch.cat(hidden)


def split_layers(num_layers: int, exit_layers: Sequence[int]) -> list[Segment]:
    """Return the segments between the exits: [0, e1), [e1, e2), …, [eS, L)."""
    bounds = [0, *exit_layers, num_layers]
    return [Segment(start, end) for start, end in itertools.pairwise(bounds)]


class DecodeStep:
    """Runs steps on one model. Without a drafter a step is plain decoding."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        block_size: int,
        *,
        drafter: Drafter | None = None,
        runner: SegmentRunner | None = None,
        recorder: Recorder | None = None,
        spare_slots: Sequence[int] = (),
        verifies: bool = True,
        clock: Clock = time.perf_counter,
    ) -> None:
        """
        Args:
            runner: Runs the segments between the drafter's exits; None: the decoder is called.
            recorder: Records what learning heads train on.
            spare_slots: Slots of the cache that belong to no sequence, one for each alternate that
                a step may have.
            verifies: False: every draft is accepted, right or wrong; the output changes
                (benchmarks).
            clock: In seconds; times the parts of a step for the drafter.
        """
        self._decoder = decoder
        self._cache = cache
        self._spare_slots = spare_slots
        self._block_size = block_size
        self._block_tables = BlockTables(decoder.ops.device)
        self._clock = clock
        self._drafter = drafter
        exit_layers = [] if drafter is None else drafter.exit_layers
        self._segments = split_layers(decoder.spec.num_layers, exit_layers)
        self._runner = runner or EagerRunner(decoder, self._segments, cache)
        self._ahead = RunAhead(self._runner)
        self._recorder = recorder
        acceptance = Acceptance(exit_layers, verifies=verifies)
        self._verifier = Verifier(decoder, self._runner, acceptance, recorder)

    def run(self, plans: Sequence[RowPlan], states: Sequence[SequenceState]) -> list[RowResult]:
        """Run one step for all rows; their states advance by the accepted tokens.

        Returns:
            One result per plan, in order. A row with NaN in its logits, or in the hidden states of
            its prompt, has an error and no tokens.
        """
        self._ahead.begin()
        rows = [Row(plan, state) for plan, state in zip(plans, states, strict=True)]
        batch = self._batch(plans)
        estimate = self._estimate(plans)
        if self._recorder is not None:
            self._recorder.begin()
        refs: Sequence[TokenRef] = ()
        launch_next: Callable[[Tensor], None] | None = None
        is_drafting = self._begin_drafting(rows, estimate)
        is_plain = not is_drafting and self._is_plain(rows)
        if is_drafting:
            self._ahead.decline()
            refs, hidden = self._draft_and_descend(rows, batch, estimate)
        elif is_plain:
            hidden, launch_next = self._pass(rows, batch, estimate)
        else:
            refs, hidden = self._descend(rows, batch, estimate)
        if self._drafter is not None:
            self._drafter.catch_up()
        started = self._clock()
        keeps_states = self._drafter is not None and self._drafter.wants_states(rows)
        if is_plain:
            results = self._verifier.next_tokens(
                rows, hidden, keeps_states=keeps_states, launch_next=launch_next
            )
        else:
            results = self._verifier.verify(rows, refs, hidden, keeps_states=keeps_states)
            self._settle(rows, batch)
        estimate.last_seconds = self._clock() - started
        if self._drafter is not None:
            self._drafter.learn(rows, results, estimate)
        return results

    def _batch(self, plans: Sequence[RowPlan]) -> ForwardBatch:
        device = self._decoder.ops.device
        size, spare_slots = self._block_size, self._spare_slots
        return ForwardBatch(plans, self._block_tables, size, device, spare_slots)

    def _estimate(self, plans: Sequence[RowPlan]) -> StepEstimate:
        """Return the estimate of a step without drafts."""
        return StepEstimate(
            num_tokens=sum([plan.num_tokens for plan in plans]),
            expected_tokens=float(sum([plan.is_decoding for plan in plans])),
            num_spare=len(self._spare_slots),
            is_ahead=self._ahead.is_offered,
        )

    def _begin_drafting(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """Make the first look-up drafts; return whether the step drafts or evaluates any exit."""
        drafter = self._drafter
        if drafter is None or not drafter.begin(rows, estimate):
            return False
        drafter.look_up(rows, estimate)
        return any(row.drafts for row in rows) or drafter.will_evaluate_exits(rows, estimate)

    def _is_plain(self, rows: Sequence[Row]) -> bool:
        """Whether a step without drafts has one token per row and only the next tokens matter:
        nothing is recorded for learning or read from a prompt.
        """
        if self._recorder is not None and not self._recorder.is_broken:
            return False
        return all(row.plan.only_decodes and not wants_reading(row.plan, row.state) for row in rows)

    def _pass(
        self, rows: Sequence[Row], batch: ForwardBatch, estimate: StepEstimate
    ) -> tuple[Tensor, Callable[[Tensor], None] | None]:
        """Run the rows' newest tokens through all layers, in one call if the runner has one.

        The call may have been made in the step before.

        Returns:
            The last hidden states [T, E], and, if the next step is foreseeable, a function that
            launches its call, given the chosen tokens.
        """
        states = [row.state for row in rows]
        tokens = batch.newest([state.token_ids[-1] for state in states])
        ahead = self._ahead.take(states, tokens.places)
        hidden = self._runner.run_through(tokens) if ahead is None else ahead
        if hidden is None:
            return self._descend(rows, batch, estimate)[1], None
        if self._drafter is not None:
            self._drafter.note_pass(len(rows), estimate, is_ahead=ahead is not None)
        if not self._foresees_next(rows, batch):
            return hidden, None
        return hidden, lambda chosen: self._ahead.launch(states, batch.following(chosen))

    def _foresees_next(self, rows: Sequence[Row], batch: ForwardBatch) -> bool:
        """Whether the next step is likely to be a plain one of the same rows."""
        if not self._ahead.is_allowed or not batch.has_room_for_next:
            return False
        for row in rows:
            if row.state.is_ending or row.state.sampling.num_logprobs is not None:
                return False
        return self._drafter is None or not self._drafter.may_draft_next(rows)

    def _descend(
        self, rows: Sequence[Row], batch: ForwardBatch, estimate: StepEstimate
    ) -> tuple[list[TokenRef], Tensor]:
        """Run all known tokens from the first layer to the last, segment by segment."""
        refs, token_ids = _take_waiting(rows)
        hidden = self._runner.embed(batch.int32(token_ids))
        started = self._clock()
        tokens = batch.tokens(refs)
        for index, segment in enumerate(self._segments):
            if segment.num_layers:
                hidden = self._runner.run(index, hidden, tokens)
                if self._drafter is not None:
                    now = self._clock()
                    self._drafter.note_segment(index, len(refs), now - started, estimate)
                    started = now
            if self._recorder is not None and index < len(self._segments) - 1:
                self._recorder.see_exit(index, rows, refs, hidden)
        return refs, hidden

    def _draft_and_descend(
        self, rows: Sequence[Row], batch: ForwardBatch, estimate: StepEstimate
    ) -> tuple[list[TokenRef], Tensor]:
        """Draft while it pays, and run all pending tokens to the last layer."""
        boundaries = [Boundary() for _ in self._segments]
        last = len(self._segments) - 1
        segment = 0
        while True:
            if segment == 0:
                boundaries[0].put(*self._entering(rows, batch))
            refs, hidden = self._run_segment(segment, boundaries[segment], batch, estimate)
            if segment == last:
                return refs, hidden
            if self._recorder is not None:
                self._recorder.see_exit(segment, rows, refs, hidden)
            self._evaluate_exit(segment, rows, refs, hidden, estimate)
            boundaries[segment + 1].put(*_still_pending(rows, refs, hidden))
            segment = 0 if any(row.is_waiting for row in rows) else segment + 1
            if segment == 0 and self._drafter is not None:
                self._drafter.look_up(rows, estimate)

    def _entering(self, rows: Sequence[Row], batch: ForwardBatch) -> tuple[list[TokenRef], Tensor]:
        """Return the tokens that wait for segment 0, embedded."""
        refs, token_ids = _take_waiting(rows)
        return refs, self._runner.embed(batch.int32(token_ids))

    def _run_segment(
        self, index: int, boundary: Boundary, batch: ForwardBatch, estimate: StepEstimate
    ) -> tuple[list[TokenRef], Tensor]:
        """Run all tokens that wait at a boundary through the next segment, as one batch.

        The segment before an exit at layer 0 is empty.
        """
        started = self._clock()
        refs, hidden = boundary.take()
        if not self._segments[index].num_layers:
            return refs, hidden
        hidden = self._runner.run(index, hidden, batch.tokens(refs))
        if self._drafter is not None:
            seconds = self._clock() - started
            self._drafter.note_segment(index, len(refs), seconds, estimate)
        return refs, hidden

    def _evaluate_exit(
        self,
        exit_index: int,
        rows: Sequence[Row],
        refs: Sequence[TokenRef],
        hidden: Tensor,
        estimate: StepEstimate,
    ) -> None:
        """Let the drafter evaluate the exit for rows whose newest token has just arrived."""
        if self._drafter is None:
            return
        places: dict[int, list[int]] = {}
        for place, ref in enumerate(refs):
            if ref.spare is None and ref.position >= rows[ref.row].first_pending:
                places.setdefault(ref.row, []).append(place)
        arrivals = [Arrival(rows[index], where) for index, where in places.items()]
        if arrivals:
            self._drafter.evaluate_exit(exit_index, arrivals, hidden, estimate)

    def _settle(self, rows: Sequence[Row], batch: ForwardBatch) -> None:
        """Copy the keys and values of accepted alternates to the slots of their positions."""
        for index, row in enumerate(rows):
            if row.taken is not None:
                place = TokenRef(index, row.position_of(row.taken))
                aside = batch.slot(place._replace(spare=row.taken.spare))
                self._cache.copy_token(aside, batch.slot(place))


def _take_waiting(rows: Sequence[Row]) -> tuple[list[TokenRef], list[int]]:
    """Take the tokens that wait for segment 0: known ones, later new drafts and alternates."""
    refs: list[TokenRef] = []
    token_ids: list[int] = []
    for index, row in enumerate(rows):
        start = row.newest_position + 1
        ids = row.take_waiting()
        refs += [TokenRef(index, position) for position in range(start, start + len(ids))]
        token_ids += ids
    for index, row in enumerate(rows):
        for alternate in row.take_aside():
            refs.append(TokenRef(index, row.position_of(alternate), alternate.spare))
            token_ids.append(alternate.token_id)
    return refs, token_ids


def _still_pending(
    rows: Sequence[Row], refs: Sequence[TokenRef], hidden: Tensor
) -> tuple[Sequence[TokenRef], Tensor]:
    """Return the tokens without those of drafts and alternates that have just been dropped."""
    kept = [place for place, ref in enumerate(refs) if rows[ref.row].has(ref)]
    if len(kept) == len(refs):
        return refs, hidden
    return [refs[i] for i in kept], take_rows(hidden, kept)
