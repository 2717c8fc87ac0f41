"""The AdaDecode step: draft at exit layers, finish deferred layers in parallel, verify once, accept
a prefix.

For every row the newest token enters segment 0. After each segment the exit head there looks at
rows whose newest token has just arrived; those that are sure enough get a draft, and the drafts
start again at segment 0. Tokens that left early wait at the boundary after their exit and run on
together with their successors:

    boundary 0 ─ segment 0 ─ exit 0 ─ boundary 1 ─ segment 1 ─ exit 1 ─ … ─ last segment ─ verify

Invariants: a token never stands deeper than an older token of its row; drafts live inside one step;
rollback moves cursors, never bytes. Prefill tokens ride along and never exit. The step knows plans
and states, no scheduler.

Source: AdaDecode, Wei et al. 2025, arXiv 2506.03700, algorithm 1, here for any number of rows at
once.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model.decoder import Decoder, Segment
from engine.model.ops.interface import LayerCache
from engine.plan import RowPlan, RowResult
from engine.worker.drafter import Drafter
from engine.worker.exit_policy import StepEstimate
from engine.worker.forward_batch import ForwardBatch, TokenRef
from engine.worker.row import Row
from engine.worker.segment_runner import EagerRunner, SegmentRunner
from engine.worker.sequence_state import SequenceState
from engine.worker.verifier import Verifier


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
        cache: Sequence[LayerCache],
        block_size: int,
        *,
        drafter: Drafter | None = None,
        runner: SegmentRunner | None = None,
    ) -> None:
        """Args:
        runner: Runs the segments between the drafter's exits; None: they are simply called.
        """
        self._decoder = decoder
        self._block_size = block_size
        self._drafter = drafter
        exit_layers = [] if drafter is None else drafter.exit_layers
        self._segments = split_layers(decoder.spec.num_layers, exit_layers)
        self._runner = runner or EagerRunner(decoder, self._segments, cache)
        self._verifier = Verifier(decoder, self._runner, exit_layers)

    def run(self, plans: Sequence[RowPlan], states: Sequence[SequenceState]) -> list[RowResult]:
        """One step for all rows. States advance by what was accepted.

        Returns:
            One result per plan, in order; a row whose logits, or a part of whose prompt, are no
            numbers has an error and no tokens.
        """
        rows = [Row(p, s, s.last_hidden) for p, s in zip(plans, states, strict=True)]
        batch = ForwardBatch(plans, self._block_size, self._decoder.ops.device)
        estimate = StepEstimate(
            num_tokens=sum(plan.num_tokens for plan in plans),
            expected_tokens=float(sum(plan.is_decoding for plan in plans)),
        )
        refs, hidden = self._draft_and_descend(rows, batch, estimate)
        results = self._verifier.verify(rows, refs, hidden)
        if self._drafter is not None:
            self._drafter.learn(rows, results, estimate)
        return results

    def _draft_and_descend(
        self, rows: Sequence[Row], batch: ForwardBatch, estimate: StepEstimate
    ) -> tuple[list[TokenRef], Tensor]:
        """Draft while it pays; every pending token comes out of the last layer."""
        boundaries = [Boundary() for _ in self._segments]
        boundaries[0].put(*self._known_tokens(rows, batch))
        last = len(self._segments) - 1
        segment = 0
        while segment < last:
            refs, hidden = self._run_segment(segment, boundaries[segment], batch, estimate)
            boundaries[segment + 1].put(refs, hidden)
            drafting = self._draft(segment, rows, refs, hidden, estimate)
            if drafting:
                boundaries[0].put(*self._newest_tokens(drafting, batch))
                segment = 0
            else:
                segment += 1
        return self._run_segment(last, boundaries[last], batch, estimate)

    def _known_tokens(
        self, rows: Sequence[Row], batch: ForwardBatch
    ) -> tuple[list[TokenRef], Tensor]:
        """The plan's tokens, embedded."""
        refs: list[TokenRef] = []
        token_ids: list[int] = []
        for index, row in enumerate(rows):
            start, end = row.plan.start, row.plan.start + row.plan.num_tokens
            refs.extend(TokenRef(index, position) for position in range(start, end))
            token_ids.extend(row.state.token_ids[start:end])
        return refs, self._runner.embed(batch.int32(token_ids))

    def _newest_tokens(
        self, drafting: Sequence[tuple[int, Row]], batch: ForwardBatch
    ) -> tuple[list[TokenRef], Tensor]:
        """The drafts just made, embedded: they start at segment 0."""
        refs = [TokenRef(index, row.newest_position) for index, row in drafting]
        ids = [row.drafts[-1].token_id for _, row in drafting]
        return refs, self._runner.embed(batch.int32(ids))

    def _run_segment(
        self, index: int, boundary: Boundary, batch: ForwardBatch, estimate: StepEstimate
    ) -> tuple[list[TokenRef], Tensor]:
        """Everything that waits at a boundary, through the segment behind it, as one batch."""
        refs, hidden = boundary.take()
        hidden = self._runner.run(index, hidden, batch.tokens(refs))
        if self._drafter is not None:
            estimate.seconds += self._drafter.segment_cost(index, len(refs))
        return refs, hidden

    def _draft(
        self,
        exit_index: int,
        rows: Sequence[Row],
        refs: Sequence[TokenRef],
        hidden: Tensor,
        estimate: StepEstimate,
    ) -> list[tuple[int, Row]]:
        """Rows (with their index) that drafted at this exit, of those whose newest token has
        just arrived.
        """
        if self._drafter is None:
            return []
        arrived = [
            (place, ref.row)
            for place, ref in enumerate(refs)
            if ref.position == rows[ref.row].newest_position and self._drafter.wants(rows[ref.row])
        ]
        if not arrived:
            return []
        places = torch.tensor([place for place, _ in arrived], device=hidden.device)
        lookers = [rows[index] for _, index in arrived]
        picked = self._drafter.draft(exit_index, lookers, hidden[places], estimate)
        return [(arrived[i][1], lookers[i]) for i in picked]
