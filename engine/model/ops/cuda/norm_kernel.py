"""RMS norm of hidden states on CUDA: one program per token, in one order of summation.

The residual is added at the end of the product before, so a norm reads complete states. The norm is
a launch of its own (two of a layer's nine), not a part of the product after it. In bytes that costs
next to nothing (16 KiB of a Llama 8B layer's 436 MB, for one token); in time it costs about two
microseconds of 130, which `benchmarks.gpu --parts kernels` measures. Inside the product, each of
its 250 to 900 programs would need the whole sum of squares of up to 16 rows before its first step:
128 KiB each from the cache. If the squares were summed along the way instead, their order would be
that of the tile's steps, and a token's bits would depend on how many share its call.
"""

import triton
import triton.language as tl
from torch import Tensor

from engine.model.ops.cuda.overlap import options, wait


@triton.jit
def _rms_norm_kernel(x, weight, out, size, eps, BLOCK: tl.constexpr, OVERLAPS: tl.constexpr):
    if OVERLAPS:
        wait()
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < size
    values = tl.load(x + token * size + columns, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / size + eps)
    gain = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    # Rounded before the gain is applied, as when the models were trained.
    kind = out.dtype.element_ty
    normalized = (values * scale).to(kind).to(tl.float32)
    tl.store(out + token * size + columns, (normalized * gain).to(kind), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, overlaps: bool = False) -> Tensor:
    """Return `weight * x / rms(x)` over the last dimension of x [T, E], computed in float32."""
    x = x.contiguous()
    out = x.new_empty(x.shape)
    num_tokens, size = x.shape
    if num_tokens:
        block = triton.next_power_of_2(size)
        num_warps = 8 if block >= 2048 else 4
        _rms_norm_kernel[(num_tokens,)](
            x,
            weight,
            out,
            size,
            eps,
            BLOCK=block,
            num_warps=num_warps,
            **options(overlaps=overlaps),
        )
    return out
