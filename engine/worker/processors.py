"""What requests ask of their logits, for all rows at once.

Order: the structure's mask, the allowed tokens, repetition, frequency and presence penalties, logit
bias, min_tokens mask, temperature, top-k, top-p, min-p. What a row asks for is gathered on the host
and applied on the device, a few operations for all rows together, whose results for a row do not
depend on the others: sums, where there are any, are of integers. A fault in a row's own wishes is
that row's: its logits become NaN.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.worker.device_errors import is_row_fault
from engine.worker.sample_point import ReducedVocabulary, SamplePoint, columns_of
from engine.worker.sequence_state import SequenceState

logger = logging.getLogger(__name__)

# Masses of tokens are integers of this many per greatest mass: sums of them are the same in any
# order, and what is smaller never reaches a nucleus.
_UNIT = 1 << 40


def has_processors(state: SequenceState) -> bool:
    """Whether a sequence's logits are anything but taken as they are."""
    s = state.start
    return bool(
        state.structure is not None
        or s.repetition_penalty != 1.0
        or s.frequency_penalty
        or s.presence_penalty
        or s.logit_bias
        or s.allowed_token_ids
        or s.min_tokens > state.num_output_tokens()
        or _truncates(state)
    )


def process(
    logits: Tensor, points: Sequence[SamplePoint], reduced: ReducedVocabulary | None
) -> Tensor:
    """Processed logits [T, V'], the input left as it is; all of a row are NaN if it can have no
    token, or its own wishes raised.
    """
    logits = logits.clone()
    vocab_size = logits.shape[1] if reduced is None else reduced.vocab_size
    wishes = [_wishes_alone(point, vocab_size, reduced) for point in points]
    _mask(logits, wishes, reduced)
    _edit(logits, wishes)
    truncated = [row for row, point in enumerate(points) if _truncates(point.state)]
    if truncated:
        _truncate(logits, truncated, [points[row].state for row in truncated])
    dead = [row for row, wish in enumerate(wishes) if wish is None or wish.is_dead]
    if dead:
        logits[torch.tensor(dead, device=logits.device)] = float("nan")
    return logits


@dataclass(slots=True)
class _Wishes:
    """One row's, with columns in place of token ids."""

    allowed: Tensor | None = None  # [V] bool on the CPU
    is_dead: bool = False  # nothing is allowed
    repeated: list[tuple[int, float]] = field(default_factory=list)  # and the penalty
    added: list[tuple[int, float]] = field(default_factory=list)  # penalties
    biased: list[tuple[int, float]] = field(default_factory=list)
    excluded: list[tuple[int, float]] = field(default_factory=list)  # the value has no meaning


def _wishes_alone(
    point: SamplePoint, vocab_size: int, reduced: ReducedVocabulary | None
) -> _Wishes | None:
    """`_wishes`; None after a fault in them."""
    try:
        return _wishes(point, vocab_size, reduced)
    except Exception as error:
        if not is_row_fault(error):
            raise
        logger.exception("sequence %d: its logits cannot be processed", point.state.sequence_id)
        return None


def _wishes(point: SamplePoint, vocab_size: int, reduced: ReducedVocabulary | None) -> _Wishes:
    """Args:
    vocab_size: Columns of the whole vocabulary.
    """
    state, start = point.state, point.state.start
    wishes = _Wishes()
    if not has_processors(state):
        return wishes
    wishes.allowed = point.allowed
    wishes.is_dead = wishes.allowed is not None and not wishes.allowed.any()
    if start.allowed_token_ids:
        _allow_only(wishes, start.allowed_token_ids, vocab_size, is_reduced=reduced is not None)
    if start.repetition_penalty != 1.0:
        seen = sorted(state.seen_ids(point.drafts))
        wishes.repeated = columns_of(((i, start.repetition_penalty) for i in seen), reduced)
    if start.frequency_penalty or start.presence_penalty:
        amounts = (
            (i, -(count * start.frequency_penalty + start.presence_penalty))
            for i, count in sorted(state.output_counts(point.drafts).items())
        )
        wishes.added = columns_of(amounts, reduced)
    if start.logit_bias:
        wishes.biased = columns_of(sorted(start.logit_bias.items()), reduced)
    if point.is_too_short and _may_go_on(state):
        wishes.excluded = columns_of(((i, 0.0) for i in start.stop_token_ids), reduced)
    return wishes


def _allow_only(
    wishes: _Wishes, token_ids: Sequence[int], vocab_size: int, *, is_reduced: bool
) -> None:
    """Narrow what is allowed to these tokens."""
    listed = torch.zeros(vocab_size, dtype=torch.bool)
    listed[torch.tensor(token_ids)] = True
    wishes.allowed = listed if wishes.allowed is None else wishes.allowed & listed
    if not is_reduced:
        wishes.is_dead = not wishes.allowed.any()


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


def _mask(
    logits: Tensor, wishes: Sequence[_Wishes | None], reduced: ReducedVocabulary | None
) -> None:
    """Exclude what rows do not allow, in place."""
    masks = {i: wish.allowed for i, wish in enumerate(wishes) if wish and wish.allowed is not None}
    if not masks:
        return
    allowed = torch.stack(list(masks.values())).to(logits.device)
    if reduced is not None:
        allowed = allowed[:, reduced.token_ids.long()]
    rows = torch.tensor(list(masks), device=logits.device)
    logits[rows] = logits[rows].masked_fill(~allowed, float("-inf"))


def _edit(logits: Tensor, wishes: Sequence[_Wishes | None]) -> None:
    """Penalties, biases and exclusions, in place."""
    given = [wish or _Wishes() for wish in wishes]
    at, penalties = _pairs([wish.repeated for wish in given], logits)
    if at is not None:
        values = logits[at]
        logits[at] = torch.where(values > 0, values / penalties, values * penalties)
    for lists in ([wish.added for wish in given], [wish.biased for wish in given]):
        at, amounts = _pairs(lists, logits)
        if at is not None:
            logits[at] += amounts
    at, _ = _pairs([wish.excluded for wish in given], logits)
    if at is not None:
        logits[at] = float("-inf")


def _pairs(
    lists: Sequence[Sequence[tuple[int, float]]], like: Tensor
) -> tuple[tuple[Tensor, Tensor] | None, Tensor]:
    """(rows, columns) of all rows' pairs, and their values; no pair comes twice."""
    rows = [row for row, pairs in enumerate(lists) for _ in pairs]
    if not rows:
        return None, like
    columns = [column for pairs in lists for column, _ in pairs]
    values = [value for pairs in lists for _, value in pairs]
    at = torch.tensor([rows, columns], device=like.device)
    return (at[0], at[1]), torch.tensor(values, dtype=like.dtype, device=like.device)


def _truncates(state: SequenceState) -> bool:
    s = state.start
    return not state.is_greedy and bool(s.top_k or s.top_p < 1.0 or s.min_p > 0.0)


def _truncate(logits: Tensor, rows: Sequence[int], states: Sequence[SequenceState]) -> None:
    """Top-k, top-p, min-p on the tempered distributions of some rows, in place."""
    starts = [state.start for state in states]

    def numbers(values: Sequence[float], dtype: torch.dtype = logits.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

    at = torch.tensor(rows, device=logits.device)
    raw = logits[at]
    size = raw.shape[1]
    tempered = raw / numbers([start.temperature for start in starts])
    most = [start.top_k if 0 < start.top_k < size else size for start in starts]
    if min(most) < size:
        largest = max(k for k in most if k < size)
        ranked = tempered.topk(largest).values
        last = ranked.gather(1, numbers([min(k, largest) for k in most], torch.int64) - 1)
        is_open = numbers([k == size for k in most], torch.bool)
        tempered = tempered.masked_fill((tempered < last) & ~is_open, float("-inf"))
    if any(start.top_p < 1.0 for start in starts):
        keep = _nucleus(tempered, numbers([start.top_p for start in starts], torch.float64))
        tempered = tempered.masked_fill(~keep, float("-inf"))
    if any(start.min_p > 0.0 for start in starts):
        share = (tempered - tempered.amax(-1, keepdim=True)).exp()
        least = numbers([start.min_p for start in starts])
        tempered = tempered.masked_fill(share < least, float("-inf"))
    logits[at] = raw.masked_fill(tempered.isneginf(), float("-inf"))


def _nucleus(tempered: Tensor, top_p: Tensor) -> Tensor:
    """Of every row the smallest set of most likely tokens whose mass reaches top_p; at least one.

    Args:
        top_p: [T, 1] float64; 1 keeps all.
    """
    ranked, order = tempered.sort(dim=-1, descending=True, stable=True)
    mass = ((ranked - ranked[:, :1]).exp().double() * _UNIT).round().to(torch.int64)
    before = mass.cumsum(-1) - mass
    enough = top_p * before[:, -1:].add(mass[:, -1:]).double()
    in_order = (before.double() < enough) | (top_p >= 1.0) | tempered.isnan().any(-1, keepdim=True)
    return torch.zeros_like(in_order).scatter(1, order, in_order)
