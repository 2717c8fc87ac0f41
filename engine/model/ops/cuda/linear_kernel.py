"""Linear layers on CUDA whose rows keep their bits, whatever shares the call.

Every result is one sum in one order: the loop over the inner dimension is never split, and with
every tile it takes 16 elements at a time in the same tensor-core instruction (mma.sync m16n8k16).
Hopper's wgmma, which the compiler would use for a wide tile, sums in another order; so tiles have
fewer than 64 rows or fewer than four warps. `engine.model.exact_rows` checks this on the machine.
Source of the rule: vLLM RFC #54506, where verification and decoding took different kernels and no
longer agreed.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.model.ops.cuda.overlap import options, prefetch, wait
from engine.model.ops.cuda.tiles import Tile


@triton.jit
def _prefetch(
    weight, columns, out_features, in_features, IS_GATED: tl.constexpr, LINES: tl.constexpr
):
    """Fetch the weights that the loop reads first into the cache."""
    line = tl.arange(0, LINES) * (1024 // weight.dtype.element_ty.primitive_bitwidth)
    row = tl.minimum(columns, out_features - 1).to(tl.int64) * in_features
    at = weight + row[:, None] + tl.minimum(line, in_features - 1)[None, :]
    prefetch(at)
    if IS_GATED:
        prefetch(at + out_features.to(tl.int64) * in_features)


@triton.jit(do_not_specialize=["num_tokens"])
def _linear_kernel(
    x,  # [T, K]
    weight,  # [N, K]; [2 N, K] when gated: the gate's rows first
    bias,  # like weight's rows
    residual,  # [T, N]
    out,  # [T, N]
    num_tokens,
    out_features,  # N
    in_features,  # K
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_EVEN: tl.constexpr,  # K is a multiple of BLOCK_K
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LINES: tl.constexpr,  # cache lines of each weight row that are fetched before waiting
    OVERLAPS: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    is_row = rows < num_tokens
    is_column = columns < out_features
    x_at = x + rows.to(tl.int64)[:, None] * in_features + inner[None, :]
    weight_at = weight + columns.to(tl.int64)[:, None] * in_features + inner[None, :]
    if OVERLAPS:
        _prefetch(weight, columns, out_features, in_features, IS_GATED, LINES)
        wait()
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if IS_GATED:
        up_at = weight_at + out_features.to(tl.int64) * in_features
        up_total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, in_features, BLOCK_K):
        x_mask = is_row[:, None]
        weight_mask = is_column[:, None]
        if not IS_EVEN:
            is_inner = (start + inner < in_features)[None, :]
            x_mask = x_mask & is_inner
            weight_mask = weight_mask & is_inner
        part = tl.load(x_at + start, mask=x_mask, other=0.0)
        tile = tl.load(weight_at + start, mask=weight_mask, other=0.0)
        total = tl.dot(part, tl.trans(tile), total, input_precision=PRECISION)
        if IS_GATED:
            up_tile = tl.load(up_at + start, mask=weight_mask, other=0.0)
            up_total = tl.dot(part, tl.trans(up_tile), up_total, input_precision=PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    if IS_GATED:
        if HAS_BIAS:
            up_bias = tl.load(bias + out_features + columns, mask=is_column, other=0.0)
            up_total += up_bias.to(tl.float32)[None, :]
        total = total / (1.0 + tl.exp(-total)) * up_total
    at = rows.to(tl.int64)[:, None] * out_features + columns[None, :]
    mask = is_row[:, None] & is_column[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=mask)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    tile: Tile,
    *,
    is_gated: bool = False,
    out_dtype: torch.dtype | None = None,
    overlaps: bool = False,
) -> Tensor:
    """Return `residual + weight @ x + bias` for x [T, in], weight [out, in], summed in float32.

    Args:
        is_gated: The weight is [gate; up]: the result is `silu(gate) * up` [T, out / 2].
        out_dtype: Type of the result; None means that of x.
        overlaps: Launch before the kernel ahead has ended; see `engine.model.ops.cuda.overlap`.
    """
    x = x.contiguous()
    num_tokens, in_features = x.shape
    out_features = weight.shape[0] // 2 if is_gated else weight.shape[0]
    out = x.new_empty(num_tokens, out_features, dtype=out_dtype or x.dtype)
    if num_tokens == 0:
        return out
    columns = max(16, tile.columns // 2) if is_gated else tile.columns
    ahead = min(tile.inner * (tile.num_stages - 1), in_features) * x.element_size()
    grid = (triton.cdiv(num_tokens, tile.rows), triton.cdiv(out_features, columns))
    _linear_kernel[grid](
        x,
        weight,
        bias,
        residual if residual is None else residual.contiguous(),
        out,
        num_tokens,
        out_features,
        in_features,
        HAS_BIAS=bias is not None,
        HAS_RESIDUAL=residual is not None,
        IS_GATED=is_gated,
        IS_EVEN=in_features % tile.inner == 0,
        PRECISION="ieee",
        BLOCK_M=tile.rows,
        BLOCK_N=columns,
        BLOCK_K=tile.inner,
        LINES=triton.next_power_of_2(-(-ahead // 128)),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **options(overlaps=overlaps),
    )
    return out
