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
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engine.model.decoder import Decoder, Segment
from engine.model.ops.interface import LayerCache
from engine.plan import RowPlan, RowResult
from engine.request import ExitRecord
from engine.worker.acceptance import num_accepted
from engine.worker.device_errors import is_row_fault
from engine.worker.drafter import Drafter
from engine.worker.exit_policy import StepEstimate
from engine.worker.forward_batch import ForwardBatch, TokenRef
from engine.worker.row import Row
from engine.worker.sampler import Sampler, top_logprobs
from engine.worker.sequence_state import SequenceState

logger = logging.getLogger(__name__)


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
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._block_size = block_size
        self._sampler = Sampler(decoder.ops)
        self._drafter = drafter
        self._exit_layers = [] if drafter is None else drafter.exit_layers
        self._segments = split_layers(decoder.spec.num_layers, self._exit_layers)

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
        results = _without_broken_prompts(rows, refs, hidden, self._verify(rows, refs, hidden))
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
        return refs, self._decoder.embed(batch.int32(token_ids))

    def _newest_tokens(
        self, drafting: Sequence[tuple[int, Row]], batch: ForwardBatch
    ) -> tuple[list[TokenRef], Tensor]:
        """The drafts just made, embedded: they start at segment 0."""
        refs = [TokenRef(index, row.newest_position) for index, row in drafting]
        ids = [row.drafts[-1].token_id for _, row in drafting]
        return refs, self._decoder.embed(batch.int32(ids))

    def _run_segment(
        self, index: int, boundary: Boundary, batch: ForwardBatch, estimate: StepEstimate
    ) -> tuple[list[TokenRef], Tensor]:
        """Everything that waits at a boundary, through the segment behind it, as one batch."""
        refs, hidden = boundary.take()
        hidden = self._decoder.run(hidden, self._segments[index], self._cache, batch.tokens(refs))
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

    def _verify(
        self, rows: Sequence[Row], refs: Sequence[TokenRef], hidden: Tensor
    ) -> list[RowResult]:
        """Final logits of all pending tokens, the target's choices, the accepted prefix of every
        row.
        """
        places = {ref: place for place, ref in enumerate(refs)}
        pending = [
            [
                places[TokenRef(index, row.first_pending + i)]
                for i in range(len(row.sample_points()))
            ]
            for index, row in enumerate(rows)
        ]
        flat = [place for row_places in pending for place in row_places]
        if not flat:
            return [RowResult(sequence_id=row.state.sequence_id, token_ids=[]) for row in rows]
        last_hidden = hidden[torch.tensor(flat, device=hidden.device)]
        logits = self._decoder.logits(last_hidden)
        points = [point for row in rows for point in row.sample_points()]
        choices = self._sampler.choose(self._sampler.scores(logits, points), points)
        results, newest, offset = [], [], 0
        for row, row_places in zip(rows, pending, strict=True):
            end = offset + len(row_places)
            result = self._accept_alone(row, choices[offset:end], logits[offset:end])
            results.append(result)
            if result.token_ids:
                newest.append((row.state, result, last_hidden[offset:end]))
            offset = end
        hidden_states = [hidden[len(result.token_ids) - 1].clone() for _, result, hidden in newest]
        # Nothing raises from here on: a step changes all its states or none.
        for (state, result, _), last in zip(newest, hidden_states, strict=True):
            state.append(result.token_ids)
            state.last_hidden = last
        return results

    def _accept_alone(self, row: Row, targets: Sequence[int], logits: Tensor) -> RowResult:
        """`_accept`; a fault in it is the row's own."""
        try:
            return self._accept(row, targets, logits)
        except Exception as error:
            if not is_row_fault(error):
                raise
            sequence_id = row.state.sequence_id
            logger.exception("sequence %d: its result cannot be made", sequence_id)
            return RowResult(
                sequence_id=sequence_id, token_ids=[], error="the row's result could not be made"
            )

    def _accept(self, row: Row, targets: Sequence[int], logits: Tensor) -> RowResult:
        """A row's accepted drafts and the target's own token. Arrays have one entry per pending
        token.
        """
        sequence_id = row.state.sequence_id
        if not targets:
            return RowResult(sequence_id=sequence_id, token_ids=[])
        accepted = num_accepted(row.draft_ids, targets)
        token_ids = list(targets[: accepted + 1])
        if -1 in token_ids:
            return RowResult(
                sequence_id=sequence_id, token_ids=[], error=_why_no_token(row, logits)
            )
        num_top = row.state.start.num_logprobs
        return RowResult(
            sequence_id=sequence_id,
            token_ids=token_ids,
            logprobs=[]
            if num_top is None
            else [top_logprobs(logits[i], token, num_top) for i, token in enumerate(token_ids)],
            drafts=[
                ExitRecord(
                    token_id=draft.token_id,
                    exit_layer=self._exit_layers[draft.exit_index],
                    confidence=draft.confidence,
                    accepted=index < accepted,
                )
                for index, draft in enumerate(row.drafts)
            ],
        )


def _without_broken_prompts(
    rows: Sequence[Row], refs: Sequence[TokenRef], hidden: Tensor, results: list[RowResult]
) -> list[RowResult]:
    """Results, with an error where an unfinished prompt is no numbers, before others share its KV.

    The last token computed has read all before it, so it tells for all of them.
    """
    last = {
        ref.row: place
        for place, ref in enumerate(refs)
        if not rows[ref.row].plan.is_decoding and ref.position == rows[ref.row].first_pending
    }
    if not last:
        return results
    places = torch.tensor(list(last.values()), device=hidden.device)
    are_sound = hidden[places].isfinite().all(dim=-1).tolist()
    broken = {row for row, is_sound in zip(last, are_sound, strict=True) if not is_sound}
    return [
        replace(result, error="the model's states are not numbers") if row in broken else result
        for row, result in enumerate(results)
    ]


def _why_no_token(row: Row, logits: Tensor) -> str:
    """Why a row has no choice among its tokens."""
    structure = row.state.structure
    if structure is None or logits.isnan().any():
        return "the model's logits are not numbers"
    return structure.error or "the structure allows none of the vocabulary's tokens here"
