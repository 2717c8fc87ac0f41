"""Top-k, top-p and min-p on the tempered distributions of many rows at once.

What is left of a row does not depend on the others, because sums are of integers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.worker.sequence_state import SequenceState
from engine.worker.upload import upload

# Probability masses are rounded to integers, the greatest of a row to this one, so that their sums
# are the same in any order. A token too small to count cannot belong to a nucleus.
_UNIT = 1 << 40


def truncates(state: SequenceState) -> bool:
    """Whether a sequence's distributions are truncated at all."""
    s = state.sampling
    return not state.is_greedy and bool(s.top_k or s.top_p < 1.0 or s.min_p > 0.0)


def truncate(logits: Tensor, rows: Sequence[int], states: Sequence[SequenceState]) -> None:
    """Exclude what the rows' parameters cut off, in place.

    Args:
        logits: [T, V'].
        rows: The rows of the logits to truncate.
        states: The sequences of these rows.
    """
    asked = [state.sampling for state in states]
    device = logits.device

    def numbers(values: Sequence[float], dtype: torch.dtype = logits.dtype) -> Tensor:
        return upload(values, dtype, device)[:, None]

    at = upload(rows, torch.int64, device)
    raw = logits[at]
    size = raw.shape[1]
    tempered = raw / numbers([params.temperature for params in asked])
    most = [params.top_k if 0 < params.top_k < size else size for params in asked]
    if min(most) < size:
        largest = max(k for k in most if k < size)
        ranked = tempered.topk(largest).values
        last = ranked.gather(1, numbers([min(k, largest) for k in most], torch.int64) - 1)
        is_open = numbers([k == size for k in most], torch.bool)
        tempered = tempered.masked_fill((tempered < last) & ~is_open, float("-inf"))
    if any(params.top_p < 1.0 for params in asked):
        keep = _nucleus(tempered, numbers([params.top_p for params in asked], torch.float64))
        tempered = tempered.masked_fill(~keep, float("-inf"))
    if any(params.min_p > 0.0 for params in asked):
        share = (tempered - tempered.amax(-1, keepdim=True)).exp()
        least = numbers([params.min_p for params in asked])
        tempered = tempered.masked_fill(share < least, float("-inf"))
    logits[at] = raw.masked_fill(tempered.isneginf(), float("-inf"))


def _nucleus(tempered: Tensor, top_p: Tensor) -> Tensor:
    """Return a mask of each row's smallest set of likeliest tokens whose mass reaches top_p.

    The set has at least one token.

    Args:
        top_p: [T, 1] float64; 1 keeps all tokens.
    """
    ranked, order = tempered.sort(dim=-1, descending=True, stable=True)
    mass = ((ranked - ranked[:, :1]).exp().double() * _UNIT).round().to(torch.int64)
    before = mass.cumsum(-1) - mass
    enough = top_p * before[:, -1:].add(mass[:, -1:]).double()
    in_order = (before.double() < enough) | (top_p >= 1.0) | tempered.isnan().any(-1, keepdim=True)
    return torch.zeros_like(in_order).scatter(1, order, in_order)
