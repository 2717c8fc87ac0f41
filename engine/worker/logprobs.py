"""Log-probabilities of chosen tokens from unprocessed logits, computed for all positions that want
them with one read of the device.

A position's numbers do not depend on the others read with it. Knows logits and token ids only.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.request import TokenLogprobs
from engine.worker.device_errors import is_row_fault
from engine.worker.row_gather import take_rows
from engine.worker.upload import upload

logger = logging.getLogger(__name__)

_PIECE = 32  # positions computed at once, to limit memory
_ALIGNED = 4  # number of floats that a GPU reads at once


@dataclass(frozen=True, slots=True)
class Wanted:
    """The log-probabilities that one position wants: its token's and the most likely tokens'."""

    place: int  # row of the logits
    token_id: int
    num_top: int


def read_logprobs(logits: Tensor, wanted: Sequence[Wanted]) -> list[TokenLogprobs]:
    """Return log-probabilities at some rows of the logits [T, V], in the order of `wanted`."""
    pieces = _pieces(wanted)
    if not pieces:
        return []
    facts = [_facts(logits, [wanted[i] for i in piece]).view(-1) for piece in pieces]
    flat: list[float] = (facts[0] if len(facts) == 1 else torch.cat(facts)).tolist()
    found: dict[int, TokenLogprobs] = {}
    start = 0
    for index in (index for piece in pieces for index in piece):
        count = min(wanted[index].num_top, logits.shape[1])
        logprob, rank = flat[start : start + 2]
        ids = flat[start + 2 : start + 2 + count]
        values = flat[start + 2 + count : start + 2 + 2 * count]
        start += 2 + 2 * count
        found[index] = TokenLogprobs(
            token_id=wanted[index].token_id,
            logprob=logprob,
            top=tuple(zip(map(int, ids), values, strict=True)),
            rank=int(rank),
        )
    return [found[index] for index in range(len(wanted))]


def read_for_rows(
    logits: Tensor, wanted: Mapping[int, Sequence[Wanted]]
) -> dict[int, list[TokenLogprobs] | None]:
    """Return the log-probabilities that each row of a step wants, by row.

    They are read at once. After a fault they are read row by row, and a row at fault gets None.
    """
    try:
        read = iter(read_logprobs(logits, [one for mine in wanted.values() for one in mine]))
        return {row: list(islice(read, len(mine))) for row, mine in wanted.items()}
    except Exception as error:
        if not is_row_fault(error):
            raise
        if len(wanted) == 1:
            logger.exception("log-probabilities cannot be read")
            return dict.fromkeys(wanted)
    alone: dict[int, list[TokenLogprobs] | None] = {}
    for row, mine in wanted.items():
        alone |= read_for_rows(logits, {row: mine})
    return alone


def _pieces(wanted: Sequence[Wanted]) -> list[list[int]]:
    """Group the indices of positions by the number of top tokens they want.

    Which of equally likely tokens are listed depends on that number, so it is the position's own.
    """
    alike: dict[int, list[int]] = {}
    for index, one in enumerate(wanted):
        alike.setdefault(one.num_top, []).append(index)
    return [
        mine[start : start + _PIECE]
        for mine in alike.values()
        for start in range(0, len(mine), _PIECE)
    ]


def _facts(logits: Tensor, wanted: Sequence[Wanted]) -> Tensor:
    """Return [T', 2 + 2 k]: a token's log-probability and rank, then the ids of the k most likely
    tokens, then their log-probabilities. float64 holds all of these exactly.
    """
    logprobs = _log_softmax(take_rows(logits, [one.place for one in wanted]))
    token_ids = upload([one.token_id for one in wanted], torch.int64, logits.device)
    own = logprobs.gather(1, token_ids[:, None])
    rank = (logprobs >= own).sum(-1, keepdim=True)
    values, ids = most_likely(logprobs, min(wanted[0].num_top, logprobs.shape[1]))
    return torch.cat((own.double(), rank.double(), ids.double(), values.double()), dim=1)


def _log_softmax(logits: Tensor) -> Tensor:
    rest = -logits.shape[1] % _ALIGNED
    if not logits.is_cuda or not rest:
        return logits.log_softmax(-1)
    # A GPU sums a row in another order if it begins between two reads: pad so that none does.
    padded = F.pad(logits, (0, rest), value=float("-inf"))
    return padded.log_softmax(-1)[:, : logits.shape[1]]


def most_likely(logprobs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` greatest values and their indices [T, count], the greatest first.

    Which of equal values a GPU takes depends on the number of rows, so there all keys are made
    distinct.
    """
    if not logprobs.is_cuda:
        best = logprobs.topk(count)
        return best.values, best.indices
    ids = _distinct_keys(logprobs).topk(count).indices
    return logprobs.gather(1, ids), ids


def _distinct_keys(values: Tensor) -> Tensor:
    """Return int64 keys that order the float32 values [T, V], and equals by descending index."""
    bits = values.contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # floats are stored as sign and magnitude
    return (ordered.long() << 32) - torch.arange(values.shape[1], device=values.device)
