"""Evaluates an exit head for the rows that arrived there and gives drafts to those the policy
picks.
"""

from collections.abc import Sequence
from math import isnan
from typing import Protocol

import torch
from torch import Tensor

from engine.model.exit_head import ExitHeads
from engine.model.noise import gumbel, noise_key
from engine.plan import RowResult
from engine.worker.exit_policy import Candidate, ExitPolicy, StepEstimate
from engine.worker.row import Draft, Row
from engine.worker.sampler import ReducedVocabulary, SamplePoint, Sampler

_MEAN_GUMBEL = 0.5772  # of the noise a token outside the reduced vocabulary would have had


class Drafter(Protocol):
    """The decode step's view of whoever makes drafts (tests script their own)."""

    exit_layers: list[int]

    def wants(self, row: Row) -> bool:
        """Whether an exit should look at this row at all."""

    def draft(
        self, exit_index: int, rows: Sequence[Row], hidden: Tensor, estimate: StepEstimate
    ) -> list[int]:
        """Look at rows whose newest token stands at an exit, and append drafts to some.

        Args:
            hidden: [len(rows), E], those tokens' hidden states.
            estimate: Updated with what this costs and promises.

        Returns:
            Indices of the rows that got a draft, ascending.
        """

    def segment_cost(self, segment: int, num_tokens: int) -> float:
        """Modelled seconds of running a segment."""

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """See how a step's drafts fared."""


class HeadDrafter:
    """Exit heads at work. Adds drafts to rows, and with them the head's estimate of the last
    hidden state.
    """

    def __init__(
        self,
        heads: ExitHeads,
        sampler: Sampler,
        policy: ExitPolicy,
        threshold: float | None = None,
    ) -> None:
        """Args:
        threshold: Fixed threshold of rows that ask for none; None: the policy decides.
        """
        self.exit_layers = heads.exit_layers
        self._heads = heads
        self._sampler = sampler
        self._policy = policy
        self._threshold = threshold
        self._reduced = ReducedVocabulary(heads.token_ids, heads.columns)
        self._token_ids = heads.token_ids.tolist()

    def wants(self, row: Row) -> bool:
        """The row has room, and drafting is on, or asked for by a fixed threshold."""
        return row.has_room and (self._fixed(row) is not None or self._policy.is_drafting)

    def draft(
        self, exit_index: int, rows: Sequence[Row], hidden: Tensor, estimate: StepEstimate
    ) -> list[int]:
        """Evaluate the head at an exit; the policy picks who drafts."""
        previous = torch.stack([row.previous for row in rows if row.previous is not None])
        state, logits, other = self._heads.heads[exit_index](hidden, previous)
        estimate.seconds += self._policy.head_cost(exit_index, len(rows))
        columns, confidences = self._choose(rows, logits, other)
        candidates = [
            Candidate(
                row=index,
                confidence=confidence,
                is_greedy=row.state.is_greedy,
                threshold=self._fixed(row),
                survival=row.survival,
            )
            for index, (row, confidence) in enumerate(zip(rows, confidences, strict=True))
            if columns[index] < len(self._token_ids) and not isnan(confidence)
        ]
        chosen = self._policy.select(exit_index, candidates, estimate)
        for candidate in chosen:
            row, survival = rows[candidate.row], candidate.survival * candidate.probability
            token_id = self._token_ids[columns[candidate.row]]
            row.drafts.append(Draft(token_id, exit_index, candidate.confidence, survival))
            row.previous = state[candidate.row]
            estimate.expected_tokens += survival
            estimate.num_tokens += 1
        return sorted(candidate.row for candidate in chosen)

    def segment_cost(self, segment: int, num_tokens: int) -> float:
        """Modelled seconds of running a segment."""
        return self._policy.segment_cost(segment, num_tokens)

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """Calibrate on verified drafts; judge whether drafting pays on steps that only decode."""
        for row, result in zip(rows, results, strict=True):
            self._learn_row(row, result)
        is_free = [row.is_draftable and self._fixed(row) is None for row in rows]
        if all(is_free):
            pending = sum(1 + len(row.drafts) for row in rows)
            self._policy.observe_step(
                len(rows),
                sum(len(result.token_ids) for result in results),
                estimate.seconds + self._policy.logits_cost(pending),
            )

    def _fixed(self, row: Row) -> float | None:
        """The threshold that decides for a row instead of the policy."""
        asked = row.state.start.threshold
        return self._threshold if asked is None else asked

    def _learn_row(self, row: Row, result: RowResult) -> None:
        # Drafts after the first wrong one were never judged given a right past: they teach nothing.
        for draft, record in zip(row.drafts, result.drafts, strict=False):
            self._policy.observe_draft(
                draft.exit_index,
                draft.confidence,
                is_greedy=row.state.is_greedy,
                accepted=record.accepted,
            )
            if not record.accepted:
                break

    def _choose(
        self, rows: Sequence[Row], logits: Tensor, other: Tensor
    ) -> tuple[list[int], list[float]]:
        """Best column of [reduced vocabulary, other] per row under the rows' own noise, and how
        sure the head is.

        Confidence is the winner's softmax share of the perturbed scores, which at temperature 0 is
        the head's top-1 probability; it only steers the policy.
        """
        points = [SamplePoint(row.state, row.draft_ids) for row in rows]
        scores = self._sampler.scores(logits, points, self._reduced)
        if not all(row.state.is_greedy for row in rows):
            scores, other = self._perturb(scores, other, points)
        scores = torch.cat((scores, other), dim=1)
        best = scores.max(-1)
        confidence = (best.values - scores.logsumexp(-1)).exp()
        return best.indices.tolist(), confidence.tolist()

    def _perturb(
        self, scores: Tensor, other: Tensor, points: Sequence[SamplePoint]
    ) -> tuple[Tensor, Tensor]:
        """Temperature and the target's own Gumbel noise; rows at temperature 0 stay as they are."""
        temperatures = [point.state.start.temperature for point in points]
        device = scores.device
        temperature = torch.tensor(temperatures, dtype=torch.float32, device=device)[:, None]
        keys = [noise_key(point.state.start.seed, point.position) for point in points]
        noise = gumbel(torch.tensor(keys, device=device), self._reduced.token_ids)
        is_sampled = temperature > 0
        divisor = torch.where(is_sampled, temperature, 1.0)
        scores = scores / divisor + noise * is_sampled
        return scores, other / divisor + _MEAN_GUMBEL * is_sampled
