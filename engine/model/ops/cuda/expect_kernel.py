"""What an exit head expects at each row (`Ops.expect`) on CUDA, in one launch.

It follows the head at every exit: launched operation by operation it would cost the host more time
than a small model's whole pass costs the GPU. One program reads a row once. Each of its lanes keeps
the two best of the columns it has met, and the sum of the exponentials of all of them; then the
lanes are compared. Of equal scores the lowest column wins, for the best as for the second best. A
row's results do not depend on the other rows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.model.noise import DRAFT_WEIGHT, MEAN_GUMBEL, SaltedIds
from engine.model.ops.cuda.sample_kernels import gumbel

_BLOCK = 4096  # columns that a program reads at a time
_WEIGHT = tl.constexpr(DRAFT_WEIGHT)
_MEAN = tl.constexpr(MEAN_GUMBEL)


@triton.jit
def _shift(best):
    """Return what is subtracted from scores before exp: the best one, or 0 if that is -inf."""
    return tl.where(best == float("-inf"), 0.0, best)


@triton.jit
def _meet(best, column, second, second_column, total, scores, columns):
    """Add one column to each lane. A NaN is never best, but stays in the sum for good."""
    is_best = scores > best
    is_second = scores > second
    greatest = tl.where(is_best, scores, best)
    shift = _shift(greatest)
    total = total * tl.exp(best - shift) + tl.exp(scores - shift)
    second_column = tl.where(is_second, columns, second_column)
    second_column = tl.where(is_best, column, second_column)
    second = tl.where(is_best, best, tl.where(is_second, scores, second))
    column = tl.where(is_best, columns, column)
    return greatest, column, second, second_column, total


@triton.jit
def _lowest(scores, columns):
    """Return the greatest score and the lowest of its columns."""
    greatest = tl.max(scores, axis=0)
    return greatest, tl.min(tl.where(scores == greatest, columns, 0x7FFFFFFF), axis=0)


@triton.jit
def _expect_kernel(
    logits,  # [T, V'] float32
    other,  # [T] float32
    temperatures,  # [T] float32
    keys,  # [T] int64; not used where the temperature is 0
    token_ids,  # [V'] int32
    followers,  # [T] int64
    expected,  # [T, 5] float64, written
    num_columns,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    follower = tl.load(followers + row)
    outside = tl.load(other + row)
    key = tl.load(keys + row)
    temperature = tl.load(temperatures + row)
    if temperature > 0.0:
        outside = tl.div_rn(outside, temperature) + _MEAN * _WEIGHT
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    second = best
    followed = best
    column = tl.zeros((BLOCK,), tl.int32)
    second_column = column
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, num_columns, BLOCK):
        columns = start + lanes
        mask = columns < num_columns
        scores = tl.load(logits + row * num_columns + columns, mask=mask, other=float("-inf"))
        if temperature > 0.0:
            ids = tl.load(token_ids + columns, mask=mask, other=0)
            scores = tl.div_rn(scores, temperature) + gumbel(key, ids) * _WEIGHT
        followed = tl.where(columns == follower, scores, followed)
        best, column, second, second_column, total = _meet(
            best, column, second, second_column, total, scores, columns
        )
    # The last column stands for all tokens outside the reduced vocabulary.
    scores = tl.where(lanes == 0, outside, float("-inf"))
    followed = tl.where((lanes == 0) & (follower == num_columns), outside, followed)
    best, column, second, second_column, total = _meet(
        best, column, second, second_column, total, scores, lanes * 0 + num_columns
    )
    greatest, best_column = _lowest(best, column)
    is_there = column == best_column
    next_greatest, next_column = _lowest(
        tl.where(is_there, second, best), tl.where(is_there, second_column, column)
    )
    shift = _shift(greatest)
    log_total = tl.log(tl.sum(total * tl.exp(best - shift), axis=0))
    out = expected + row * 5
    tl.store(out, best_column.to(tl.float64))
    tl.store(out + 1, (greatest - shift - log_total).to(tl.float64))
    tl.store(out + 2, (tl.max(followed, axis=0) - shift - log_total).to(tl.float64))
    tl.store(out + 3, next_column.to(tl.float64))
    tl.store(out + 4, (next_greatest - shift - log_total).to(tl.float64))


def expect(
    logits: Tensor,
    other: Tensor,
    temperatures: Tensor,
    keys: Tensor | None,
    ids: SaltedIds,
    followers: Tensor,
) -> Tensor:
    """See `engine.model.ops.interface.Ops.expect`."""
    num_rows, num_columns = logits.shape
    expected = logits.new_empty(num_rows, 5, dtype=torch.float64)
    if num_rows:
        _expect_kernel[(num_rows,)](
            logits.contiguous(),
            other.contiguous(),
            temperatures,
            followers if keys is None else keys,  # unused if all rows are greedy
            ids.token_ids,
            followers,
            expected,
            num_columns,
            BLOCK=_BLOCK,
            num_warps=16,
        )
    return expected
