"""The AdaDecode step: draft at exit layers, finish deferred layers in parallel, verify once, accept
a prefix.

For every row the newest token enters segment 0, and with it what a look-up in the row's own text
says will follow. After each segment the exit head there looks at rows whose newest token has just
arrived: look-up drafts that it finds unlikely end there, rows that are sure enough get a draft, and
new drafts start again at segment 0. Tokens that left early wait at the boundary after their exit
and run on together with their successors:

    boundary 0 ─ segment 0 ─ exit 0 ─ boundary 1 ─ segment 1 ─ exit 1 ─ … ─ last segment ─ verify

A place may have a second candidate, an alternate: it enters segment 0 like a draft, stands in a
slot aside, and ends its own run. If it turns out right, its keys and values move to its place.

Where nobody drafts, as while the policy pauses or no look would pay, all segments run one after the
other, as one call where the runner has such a call, and what they share is made once. If the next
step can be foreseen, its call is made before this one's tokens are read (see `run_ahead`).

Invariants: a token never stands deeper than an older token of its row; drafts live inside one step;
rollback moves cursors, never bytes. Prefill tokens ride along and never exit. The step knows plans
and states, no scheduler.

Source: AdaDecode, Wei et al. 2025, arXiv 2506.03700, algorithm 1, here for any number of rows at
once.
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
from engine.worker.exit_look import Arrival
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
        """Add tokens with their hidden states [T, E]."""
        self._refs.extend(refs)
        self._hidden.append(hidden)

    def take(self) -> tuple[list[TokenRef], Tensor]:
        """All waiting tokens and their hidden states; the boundary is empty after."""
        refs, hidden = self._refs, self._hidden
        self._refs, self._hidden = [], []
        return refs, hidden[0] if len(hidden) == 1 else torch.cat(hidden)


def split_layers(num_layers: int, exit_layers: Sequence[int]) -> list[Segment]:
    """Segments between the exits: [0, e1), [e1, e2), …, [eS, L)."""
    bounds = [0, *exit_layers, num_layers]
    return [Segment(start, end) for start, end in itertools.pairwise(bounds)]


class DecodeStep:
    """Runs steps on one model. Without heads a step is plain decoding."""

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
            runner: Runs the segments between the drafter's exits; None: they are simply called.
            recorder: Watches, for heads that learn.
            spare_slots: Slots of the cache that belong to no sequence, one for each alternate that
                a step may have.
            verifies: False: every draft stands, right or wrong; the output changes (benchmarks).
            clock: In seconds: tells the drafter what parts take.
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
        """One step for all rows. States advance by what was accepted.

        Returns:
            One result per plan, in order; a row whose logits, or a part of whose prompt, are no
            numbers has an error and no tokens.
        """
        self._ahead.begin()
        rows = [Row(plan, state) for plan, state in zip(plans, states, strict=True)]
        device = self._decoder.ops.device
        size, spare_slots = self._block_size, self._spare_slots
        batch = ForwardBatch(plans, self._block_tables, size, device, spare_slots)
        estimate = StepEstimate(
            num_tokens=sum([plan.num_tokens for plan in plans]),
            expected_tokens=float(sum([plan.is_decoding for plan in plans])),
            num_spare=len(spare_slots),
            is_ahead=self._ahead.is_offered,
        )
        if self._recorder is not None:
            self._recorder.begin()
        refs: Sequence[TokenRef] = ()
        drafts = self._drafts(rows, estimate)
        is_plain = not drafts and self._is_plain(rows)
        launch_next: Callable[[Tensor], None] | None = None
        if is_plain:
            hidden, launch_next = self._pass(rows, batch, estimate)
        else:
            if drafts:
                self._ahead.decline()
            descend = self._draft_and_descend if drafts else self._descend
            refs, hidden = descend(rows, batch, estimate)
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

    def _drafts(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """Whether anything is drafted or an exit is asked; what look-ups say is drafted here."""
        drafter = self._drafter
        if drafter is None or not drafter.begin(rows, estimate):
            return False
        drafter.look_up(rows, estimate)
        return any(row.drafts for row in rows) or drafter.will_look(rows, estimate)

    def _is_plain(self, rows: Sequence[Row]) -> bool:
        """Whether a step without drafts has one token of every row, and nobody wants to see more of
        it than the next ones.
        """
        if self._recorder is not None and not self._recorder.is_broken:
            return False
        return all(row.plan.only_decodes and not wants_reading(row.plan, row.state) for row in rows)

    def _pass(
        self, rows: Sequence[Row], batch: ForwardBatch, estimate: StepEstimate
    ) -> tuple[Tensor, Callable[[Tensor], None] | None]:
        """Rows' newest tokens through all layers, in one call if the runner has such a call; that
        may have been made already. Also what launches the next step's, if it can be foreseen.
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
        return hidden, lambda chosen: self._ahead.launch(states, batch.behind(chosen))

    def _foresees_next(self, rows: Sequence[Row], batch: ForwardBatch) -> bool:
        """Whether the step after this one is likely to be as plain, of the same rows."""
        if not self._ahead.is_allowed or not batch.has_room_behind:
            return False
        for row in rows:
            if row.state.is_ending or row.state.sampling.num_logprobs is not None:
                return False
        return self._drafter is None or not self._drafter.may_draft_next(rows)

    def _descend(
        self, rows: Sequence[Row], batch: ForwardBatch, estimate: StepEstimate
    ) -> tuple[list[TokenRef], Tensor]:
        """Every known token from the first layer to the last, part by part, without a draft."""
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
        """Draft while it pays; every pending token comes out of the last layer."""
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
            self._look(segment, rows, refs, hidden, estimate)
            boundaries[segment + 1].put(*_still_pending(rows, refs, hidden))
            segment = 0 if any(row.is_waiting for row in rows) else segment + 1
            if segment == 0 and self._drafter is not None:
                self._drafter.look_up(rows, estimate)

    def _entering(self, rows: Sequence[Row], batch: ForwardBatch) -> tuple[list[TokenRef], Tensor]:
        """Tokens that wait, embedded: they start at segment 0."""
        refs, token_ids = _take_waiting(rows)
        return refs, self._runner.embed(batch.int32(token_ids))

    def _run_segment(
        self, index: int, boundary: Boundary, batch: ForwardBatch, estimate: StepEstimate
    ) -> tuple[list[TokenRef], Tensor]:
        """Everything that waits at a boundary, through the segment behind it, as one batch; before
        an exit at layer 0 there is nothing to go through.
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

    def _look(
        self,
        exit_index: int,
        rows: Sequence[Row],
        refs: Sequence[TokenRef],
        hidden: Tensor,
        estimate: StepEstimate,
    ) -> None:
        """Let the exit see the rows whose newest token has just arrived."""
        if self._drafter is None:
            return
        places: dict[int, list[int]] = {}
        for place, ref in enumerate(refs):
            if ref.spare is None and ref.position >= rows[ref.row].first_pending:
                places.setdefault(ref.row, []).append(place)
        arrivals = [
            Arrival(rows[index], where)
            for index, where in places.items()
            if refs[where[-1]].position == rows[index].newest_position
        ]
        if arrivals:
            self._drafter.look(exit_index, arrivals, hidden, estimate)

    def _settle(self, rows: Sequence[Row], batch: ForwardBatch) -> None:
        """Keys and values of alternates that turned out right, to where the sequence has them."""
        for index, row in enumerate(rows):
            if row.taken is not None:
                place = TokenRef(index, row.position_of(row.taken))
                aside = batch.slot(place._replace(spare=row.taken.spare))
                self._cache.copy_token(aside, batch.slot(place))


def _take_waiting(rows: Sequence[Row]) -> tuple[list[TokenRef], list[int]]:
    """The plan's tokens, later the drafts and alternates just made, and their ids."""
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
    """Without the tokens of drafts and alternates that have just been given up."""
    kept = [place for place, ref in enumerate(refs) if rows[ref.row].has(ref)]
    if len(kept) == len(refs):
        return refs, hidden
    return [refs[i] for i in kept], take_rows(hidden, kept)
