"""Results of rows that failed: no tokens, and an error. A fault does not affect other rows."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from engine.plan import RowResult
from engine.worker.acceptance import NO_CHOICE
from engine.worker.row import Row

NO_RESULT = "the row's result could not be made"

_LOGITS_ARE_NAN = "the model's logits are not numbers"
_STATES_ARE_NAN = "the model's states are not numbers"
_DEAD_END = "at some point of the output no token of the vocabulary is allowed"


def failed(row: Row, error: str = NO_RESULT) -> RowResult:
    """Return the result of a row that ends with an error."""
    return RowResult(sequence_id=row.state.sequence_id, token_ids=[], error=error)


def corrupt(row: Row) -> RowResult:
    """Return the result of a row whose logits are NaN, so that its KV must not be shared."""
    return replace(failed(row, _LOGITS_ARE_NAN), is_corrupt=True)


def with_broken_states(result: RowResult) -> RowResult:
    """Return the result with the error of a row whose hidden states are not finite."""
    return replace(result, error=_STATES_ARE_NAN, is_corrupt=True)


def without_choice(
    rows: Sequence[Row], results: Sequence[RowResult], firsts: Sequence[int], are_nan: Tensor
) -> list[RowResult]:
    """Return the results, with an error instead of a token that could not be chosen.

    Args:
        firsts: Per row, the index of its first pending token among all P of them.
        are_nan: [P] bool, whether there is a NaN among the token's logits.
    """
    return [
        _without_token(row, is_nan=bool(are_nan[first]))
        if NO_CHOICE in result.token_ids
        else result
        for row, result, first in zip(rows, results, firsts, strict=True)
    ]


def _without_token(row: Row, *, is_nan: bool) -> RowResult:
    """Return the result of a row that has no next token."""
    structure = row.state.structure
    if is_nan:
        return corrupt(row)
    if structure is None:
        return failed(row, _LOGITS_ARE_NAN)  # caused by the row's own processors
    if structure.error is not None:
        return replace(failed(row, structure.error), is_dead_end=structure.is_too_slow)
    return replace(failed(row, _DEAD_END), is_dead_end=True)
