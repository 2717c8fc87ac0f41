"""Logits processors: applies what requests ask of their logits, for all rows at once.

Order: the structure's mask, the allowed tokens, repetition, frequency and presence penalties, logit
bias, min_tokens mask, temperature, top-k, top-p, min-p. Each row keeps what it asks for in arrays
that grow with it. A step joins the arrays, sends them to the device in one piece (and the masks,
which are bits, in another), and applies them there with a few operations for all rows. A row's
results do not depend on the others. A fault in a row's own processors makes that row's logits NaN.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.model.ops.interface import Ops
from engine.worker.device_errors import is_row_fault
from engine.worker.sample_point import ReducedVocabulary, SamplePoint
from engine.worker.sequence_state import SequenceState
from engine.worker.token_bits import TokenBits
from engine.worker.token_wishes import TokenValues
from engine.worker.truncation import truncate, truncates
from engine.worker.upload import send, upload

logger = logging.getLogger(__name__)

_NOTHING = TokenValues(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))


def has_processors(state: SequenceState) -> bool:
    """Whether anything changes a sequence's logits before a token is chosen."""
    s = state.sampling
    return bool(
        state.structure is not None
        or state.counts is not None
        or s.logit_bias
        or s.allowed_token_ids
        or s.min_tokens > state.num_output_tokens()
        or truncates(state)
    )


def process(
    ops: Ops, logits: Tensor, points: Sequence[SamplePoint], reduced: ReducedVocabulary | None
) -> Tensor:
    """Process logits [T, V'] float32 in place, and return them.

    All logits of a row become NaN if it allows no token, or if its own processors raised.
    """
    vocab_size = logits.shape[1] if reduced is None else reduced.vocab_size
    wishes = [_wishes_alone(point, vocab_size, reduced) for point in points]
    _mask(ops, logits, wishes, reduced)
    _edit(logits, wishes)
    truncated = [row for row, point in enumerate(points) if truncates(point.state)]
    if truncated:
        truncate(logits, truncated, [points[row].state for row in truncated])
    dead = [row for row, wish in enumerate(wishes) if wish is None or wish.is_dead]
    if dead:
        logits[upload(dead, torch.int64, logits.device)] = float("nan")
    return logits


@dataclass(slots=True)
class _Wishes:
    """What one row asks for, with columns of the logits in place of token ids."""

    allowed: TokenBits | None = None
    is_dead: bool = False  # nothing is allowed
    repeated: TokenValues = _NOTHING  # repetition penalties
    added: TokenValues = _NOTHING  # frequency and presence penalties
    biased: TokenValues = _NOTHING
    excluded: TokenValues = _NOTHING


def _wishes_alone(
    point: SamplePoint, vocab_size: int, reduced: ReducedVocabulary | None
) -> _Wishes | None:
    """Return `_wishes`, or None if it raised by the row's own fault."""
    try:
        return _wishes(point, vocab_size, reduced)
    except Exception as error:
        if not is_row_fault(error):
            raise
        logger.exception("sequence %d: its logits cannot be processed", point.state.sequence_id)
        return None


def _wishes(point: SamplePoint, vocab_size: int, reduced: ReducedVocabulary | None) -> _Wishes:
    """Return what a row asks for at one position.

    Args:
        vocab_size: Size of the whole vocabulary, also if the logits are of a reduced one.
    """
    state, sampling = point.state, point.state.sampling
    wishes = _Wishes()

    def placed(asked: TokenValues) -> TokenValues:
        return asked if reduced is None else reduced.placed(asked)

    wishes.allowed = point.allowed
    if wishes.allowed is None:
        wishes.allowed = state.wishes.allowed(vocab_size)
    wishes.is_dead = wishes.allowed is not None and not wishes.allowed.any()
    if state.counts is not None:
        ids, counts = state.counts.with_drafts(point.drafts)
        if sampling.repetition_penalty != 1.0:
            penalties = np.full(len(ids), sampling.repetition_penalty, dtype=np.float32)
            wishes.repeated = placed(TokenValues(ids, penalties))
        if sampling.frequency_penalty or sampling.presence_penalty:
            is_output = counts > 0
            amounts = -(counts[is_output] * sampling.frequency_penalty + sampling.presence_penalty)
            wishes.added = placed(TokenValues(ids[is_output], amounts.astype(np.float32)))
    if sampling.logit_bias:
        wishes.biased = placed(state.wishes.bias)
    # A structure puts the end off by itself. If nothing but an end is allowed, it is not put off.
    may_go_on = state.structure is None and not state.wishes.allows_ends_only
    if point.is_too_short and may_go_on:
        wishes.excluded = placed(state.wishes.ends)
    return wishes


def _mask(
    ops: Ops,
    logits: Tensor,
    wishes: Sequence[_Wishes | None],
    reduced: ReducedVocabulary | None,
) -> None:
    """Exclude, in place, the tokens that rows do not allow."""
    masks = {i: wish.allowed for i, wish in enumerate(wishes) if wish and wish.allowed is not None}
    if not masks:
        return
    rows = np.fromiter(masks, dtype=np.int32)[:, None]
    allowed = np.concatenate((rows, np.stack(list(masks.values()))), axis=1)
    token_ids = None if reduced is None else reduced.ids.token_ids
    ops.exclude(logits, send(torch.from_numpy(allowed), logits.device), token_ids)


def _edit(logits: Tensor, wishes: Sequence[_Wishes | None]) -> None:
    """Apply penalties, biases and exclusions in place."""
    given = [wish or _Wishes() for wish in wishes]
    kinds = (
        [wish.repeated for wish in given],
        [wish.added for wish in given],
        [wish.biased for wish in given],
        [wish.excluded for wish in given],
    )
    sizes = [sum(len(asked.ids) for asked in kind) for kind in kinds]
    if not any(sizes):
        return
    sent = (part.split(sizes) for part in _sent(kinds, logits.device))
    repeated, added, biased, excluded = zip(*sent, strict=True)
    rows, columns, values = repeated
    if len(rows):
        before = logits[rows, columns]
        logits[rows, columns] = torch.where(before > 0, before / values, before * values)
    for rows, columns, values in (added, biased):
        if len(rows):
            logits[rows, columns] += values
    rows, columns, values = excluded
    if len(rows):
        logits[rows, columns] = values


def _sent(
    kinds: Sequence[Sequence[TokenValues]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, columns and values on the device, kind after kind, sent as one tensor."""
    lists = [asked for kind in kinds for asked in kind]
    rows = [row for kind in kinds for row in range(len(kind))]
    packed = np.stack(
        (
            np.repeat(np.array(rows, dtype=np.int32), [len(asked.ids) for asked in lists]),
            np.concatenate([asked.ids for asked in lists], dtype=np.int32, casting="same_kind"),
            np.concatenate([asked.values for asked in lists]).view(np.int32),
        )
    )
    sent = send(torch.from_numpy(packed), device)
    return sent[0].long(), sent[1].long(), sent[2].view(torch.float32)
