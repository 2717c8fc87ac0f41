"""Logits -> tokens, the same function for exit heads and for the last layer.

Order: the structure's mask, the allowed tokens, repetition, frequency and presence penalties, logit
bias, min_tokens mask, temperature, top-k, top-p, min-p, then argmax with counter-based noise (none
at temperature 0). Where a structure, or the list of allowed tokens, leaves only the end, min_tokens
and ignore_eos do not put it off. Each row is processed by itself in a fixed order of operations, so
a token never depends on who shares its batch. See the sampling contract in `engine.model.noise`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.noise import noise_key
from engine.model.ops.interface import Ops
from engine.request import TokenLogprobs
from engine.worker.device_errors import is_row_fault
from engine.worker.sequence_state import SequenceState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SamplePoint:
    """A position whose token is to be chosen."""

    state: SequenceState
    drafts: Sequence[int]  # pending tokens of the sequence before this position

    @property
    def position(self) -> int:
        """Index in its sequence of the token to choose."""
        return len(self.state.token_ids) + len(self.drafts)

    @property
    def is_too_short(self) -> bool:
        """Whether min_tokens forbids an end here."""
        return self.state.num_output_tokens(len(self.drafts)) < self.state.start.min_tokens

    @property
    def allowed(self) -> Tensor | None:
        """[V] bool on the CPU: what the structure allows here; None: it has no say."""
        structure = self.state.structure
        if structure is None:
            return None
        puts_off_end = self.is_too_short or self.state.start.ignore_eos
        return structure.allowed(self.drafts, puts_off_end=puts_off_end)


@dataclass(frozen=True, slots=True)
class ReducedVocabulary:
    """The columns of an exit head's logits."""

    token_ids: Tensor  # [V'] int32
    columns: Tensor  # [V] int64, -1 outside


class Sampler:
    """Chooses tokens on one backend."""

    def __init__(self, ops: Ops) -> None:
        self._ops = ops

    def scores(
        self,
        logits: Tensor,
        points: Sequence[SamplePoint],
        reduced: ReducedVocabulary | None = None,
    ) -> Tensor:
        """Processed logits [T, V'] float32; the input is left as it is. All of a row are NaN if its
        own processors raised.
        """
        if not any(_has_processors(point.state) for point in points):
            return logits
        rows = [
            _process_alone(row, point, reduced) if _has_processors(point.state) else row
            for row, point in zip(logits, points, strict=True)
        ]
        return torch.stack(rows)

    def choose(
        self,
        scores: Tensor,
        points: Sequence[SamplePoint],
        reduced: ReducedVocabulary | None = None,
    ) -> list[int]:
        """Column chosen per row; -1 for a row with NaN."""
        device = scores.device
        inverse = [_inverse_temperature(point.state) for point in points]
        keys = [noise_key(point.state.start.seed, point.position) for point in points]
        chosen = self._ops.sample(
            scores,
            torch.tensor(inverse, dtype=torch.float32, device=device),
            torch.tensor(keys, dtype=torch.int64, device=device),
            None if reduced is None else reduced.token_ids,
        )
        return chosen.tolist()


def top_logprobs(logits: Tensor, token_id: int, num_top: int) -> TokenLogprobs:
    """Log-probabilities of one position from its unprocessed logits [V]."""
    logprobs = logits.log_softmax(-1)
    top: tuple[tuple[int, float], ...] = ()
    if num_top > 0:
        values, ids = logprobs.topk(min(num_top, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    logprob = logprobs[token_id]
    rank = int((logprobs >= logprob).sum())
    return TokenLogprobs(token_id=token_id, logprob=float(logprob), top=top, rank=rank)


def _inverse_temperature(state: SequenceState) -> float:
    return 0.0 if state.is_greedy else 1.0 / state.start.temperature


def _has_processors(state: SequenceState) -> bool:
    s = state.start
    return bool(
        state.structure is not None
        or s.repetition_penalty != 1.0
        or s.frequency_penalty
        or s.presence_penalty
        or s.logit_bias
        or s.allowed_token_ids
        or s.min_tokens > state.num_output_tokens()
        or (not state.is_greedy and (s.top_k or s.top_p < 1.0 or s.min_p > 0.0))
    )


def _process_alone(logits: Tensor, point: SamplePoint, reduced: ReducedVocabulary | None) -> Tensor:
    """All processors on one row [V']; a fault in them is the row's own."""
    try:
        return _process(logits, point, reduced)
    except Exception as error:
        if not is_row_fault(error):
            raise
        logger.exception("sequence %d: its logits cannot be processed", point.state.sequence_id)
        return torch.full_like(logits, float("nan"))


def _process(logits: Tensor, point: SamplePoint, reduced: ReducedVocabulary | None) -> Tensor:
    """All processors on one row [V']."""
    logits = logits.clone()
    start = point.state.start
    _restrict(logits, point, reduced)
    if start.allowed_token_ids:
        _keep_only(logits, start.allowed_token_ids, reduced)
    _penalize(logits, point, reduced)
    if start.logit_bias:
        columns, biases = _gather(sorted(start.logit_bias.items()), logits, reduced)
        logits[columns] += biases
    if point.is_too_short and _may_go_on(point.state):
        columns, _ = _gather([(i, 0.0) for i in start.stop_token_ids], logits, reduced)
        logits[columns] = float("-inf")
    if not point.state.is_greedy:
        _truncate(logits, point.state)
    return logits


def _restrict(logits: Tensor, point: SamplePoint, reduced: ReducedVocabulary | None) -> None:
    """Exclude what the structure does not allow; NaN if that is every token there is."""
    allowed = point.allowed
    if allowed is None:
        return
    if not allowed.any():
        logits.fill_(float("nan"))
        return
    allowed = allowed.to(logits.device)
    if reduced is not None:
        allowed = allowed[reduced.token_ids.long()]
    logits.masked_fill_(~allowed, float("-inf"))


def _keep_only(logits: Tensor, token_ids: Sequence[int], reduced: ReducedVocabulary | None) -> None:
    """Exclude all other tokens; NaN if none is left of the vocabulary."""
    columns, _ = _gather([(i, 0.0) for i in token_ids], logits, reduced)
    kept = logits[columns]
    is_dead = reduced is None and bool(kept.isneginf().all())
    logits.fill_(float("nan") if is_dead else float("-inf"))
    if not is_dead:
        logits[columns] = kept


def _may_go_on(state: SequenceState) -> bool:
    """Whether min_tokens can put the end off: a structure sees to that itself, and where nothing
    but the end is allowed it comes.
    """
    start = state.start
    if state.structure is not None:
        return False
    return not start.allowed_token_ids or not set(start.allowed_token_ids) <= set(
        start.stop_token_ids
    )


def _penalize(logits: Tensor, point: SamplePoint, reduced: ReducedVocabulary | None) -> None:
    start = point.state.start
    if start.repetition_penalty != 1.0:
        seen = sorted(point.state.seen_ids(point.drafts))
        columns, _ = _gather([(i, 0.0) for i in seen], logits, reduced)
        values = logits[columns]
        penalty = start.repetition_penalty
        logits[columns] = torch.where(values > 0, values / penalty, values * penalty)
    if start.frequency_penalty or start.presence_penalty:
        counts = point.state.output_counts(point.drafts)
        columns, times = _gather(sorted(counts.items()), logits, reduced)
        logits[columns] -= times * start.frequency_penalty + start.presence_penalty


def _gather(
    items: Sequence[tuple[int, float]], like: Tensor, reduced: ReducedVocabulary | None
) -> tuple[Tensor, Tensor]:
    """Columns and values of (token id, value) pairs that have a column."""
    pairs = list(items)
    ids = torch.tensor([i for i, _ in pairs], dtype=torch.int64, device=like.device)
    values = torch.tensor([float(v) for _, v in pairs], device=like.device)
    if reduced is None:
        return ids, values
    columns = reduced.columns[ids]
    return columns[columns >= 0], values[columns >= 0]


def _truncate(logits: Tensor, state: SequenceState) -> None:
    """Top-k, top-p, min-p on the tempered distribution of one row, in place."""
    start = state.start
    if not (start.top_k or start.top_p < 1.0 or start.min_p > 0.0):
        return
    tempered = logits / start.temperature
    keep = torch.ones_like(logits, dtype=torch.bool)
    if start.top_k and start.top_k < len(logits):
        keep &= tempered >= tempered.topk(start.top_k).values[-1]
    if start.top_p < 1.0:
        keep &= _nucleus(tempered.masked_fill(~keep, float("-inf")), start.top_p)
    if start.min_p > 0.0:
        keep &= tempered.softmax(-1) >= start.min_p * tempered.softmax(-1).max()
    logits.masked_fill_(~keep, float("-inf"))


def _nucleus(tempered: Tensor, top_p: float) -> Tensor:
    """The smallest set of most likely tokens whose mass reaches top_p; at least one."""
    probs, order = tempered.softmax(-1).sort(descending=True, stable=True)
    before = probs.cumsum(-1) - probs
    keep = torch.zeros_like(tempered, dtype=torch.bool)
    keep[order[before < top_p]] = True
    return keep
