"""Gumbel-argmax over the vocabulary on CUDA, and the exclusion of tokens that are not allowed.

The noise of `engine.model.noise` is made where it is added, and never stored. The 64-bit mixing
equals that of the torch implementation to the bit; the logarithms are the device's own. A worker on
this backend makes all its choices this way, those of exit heads included, so they agree with one
another; noise that torch computes on the same device may differ in the last bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.model.noise import GOLDEN, MULTIPLIER_1, MULTIPLIER_2, signed

_BLOCK = 2048  # columns per program
_GOLDEN = tl.constexpr(signed(GOLDEN))
_MULTIPLIER_1 = tl.constexpr(signed(MULTIPLIER_1))
_MULTIPLIER_2 = tl.constexpr(signed(MULTIPLIER_2))


@triton.jit
def gumbel(key, token_ids):
    """Return the noise [V'] float32 of one key; see `engine.model.noise.gumbel`."""
    z = key ^ (token_ids.to(tl.int64) * _GOLDEN)
    # Shifts of int64 are arithmetic: mask off the copied sign bits to get logical ones.
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MULTIPLIER_1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MULTIPLIER_2
    z = z ^ ((z >> 31) & 0x1FFFFFFFF)
    uniform = (((z >> 41) & 0x7FFFFF).to(tl.float32) + 0.5) * (1.0 / 8388608.0)
    return -tl.log(-tl.log(uniform))


@triton.jit
def _exclude_kernel(
    logits,  # [T, V'] float32, written
    allowed,  # [M, 1 + W] int32: a row of the logits, then its words
    token_ids,  # [V'] int32
    num_columns,
    num_words,
    HAS_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    words = allowed + tl.program_id(0).to(tl.int64) * (num_words + 1)
    row = tl.load(words).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < num_columns
    ids = columns
    if HAS_IDS:
        ids = tl.load(token_ids + columns, mask=mask, other=0)
    word = tl.load(words + 1 + (ids >> 5), mask=mask, other=0)
    is_excluded = ((word >> (ids & 31)) & 1) == 0
    tl.store(logits + row * num_columns + columns, float("-inf"), mask=mask & is_excluded)


@triton.jit
def _best_of_block_kernel(
    logits,  # [T, V'] float32, rows `row_stride` apart
    scales,  # [T] inverse temperatures
    keys,  # [T] int64
    token_ids,  # [V'] int32
    best,  # [T, blocks] float32, written
    best_column,  # [T, blocks] int64, written; -1: the block holds a NaN
    row_stride,
    num_columns,
    HAS_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    mask = columns < num_columns
    values = tl.load(logits + row * row_stride + columns, mask=mask, other=float("-inf"))
    has_nan = tl.max((values != values).to(tl.int32), axis=0)
    scale = tl.load(scales + row)
    if scale != 0.0:
        ids = columns
        if HAS_IDS:
            ids = tl.load(token_ids + columns, mask=mask, other=0)
        values = values * scale + gumbel(tl.load(keys + row), ids)
        values = tl.where(mask, values, float("-inf"))
    greatest, place = tl.max(values, axis=0, return_indices=True)
    at = row * tl.num_programs(1) + block
    tl.store(best + at, greatest)
    tl.store(best_column + at, tl.where(has_nan != 0, -1, block * BLOCK + place).to(tl.int64))


@triton.jit
def _best_of_row_kernel(best, best_column, chosen, num_blocks, BLOCKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, BLOCKS)
    mask = blocks < num_blocks
    at = row * num_blocks + blocks
    column = tl.load(best_column + at, mask=mask, other=0)
    _, place = tl.max(
        tl.load(best + at, mask=mask, other=float("-inf")), axis=0, return_indices=True
    )
    winner = tl.load(best_column + row * num_blocks + place)
    tl.store(chosen + row, tl.where(tl.min(column, axis=0) < 0, -1, winner))


def exclude(logits: Tensor, allowed: Tensor, token_ids: Tensor | None) -> None:
    """See `engine.model.ops.interface.Ops.exclude`."""
    assert logits.is_contiguous(), "exclude: logits must be contiguous"
    allowed = allowed.contiguous()
    num_columns, num_rows = logits.shape[1], len(allowed)
    _exclude_kernel[(num_rows, triton.cdiv(num_columns, _BLOCK))](
        logits,
        allowed,
        token_ids,
        num_columns,
        allowed.shape[1] - 1,
        HAS_IDS=token_ids is not None,
        BLOCK=_BLOCK,
        num_warps=8,
    )


def sample(
    logits: Tensor, inverse_temperature: Tensor, keys: Tensor, token_ids: Tensor | None
) -> Tensor:
    """See `engine.model.ops.interface.Ops.sample`."""
    logits = logits.contiguous()
    num_rows, num_columns = logits.shape
    num_blocks = triton.cdiv(num_columns, _BLOCK)
    best = logits.new_empty(num_rows, num_blocks)
    best_column = logits.new_empty(num_rows, num_blocks, dtype=torch.int64)
    chosen = logits.new_empty(num_rows, dtype=torch.int64)
    if num_rows == 0:
        return chosen
    _best_of_block_kernel[(num_rows, num_blocks)](
        logits,
        inverse_temperature,
        keys,
        token_ids,
        best,
        best_column,
        logits.stride(0),
        num_columns,
        HAS_IDS=token_ids is not None,
        BLOCK=_BLOCK,
        num_warps=8,
    )
    _best_of_row_kernel[(num_rows,)](
        best,
        best_column,
        chosen,
        num_blocks,
        BLOCKS=triton.next_power_of_2(num_blocks),
        num_warps=1,
    )
    return chosen
