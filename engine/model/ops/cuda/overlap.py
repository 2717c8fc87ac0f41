"""Kernels that are launched before the one ahead of them has ended.

Hopper calls it programmatic dependent launch. A kernel's programs take their places as soon as all
those of the kernel ahead have theirs, fetch what no kernel writes (weights) into the cache, and
wait: for the end of the kernel ahead, which itself waited. So all that a kernel reads is written,
and all that it overwrites was read. What is saved is the launch, about a microsecond of the dozen
or so that most of a layer's kernels take. It changes no bits.

Off unless `tiles.json` has measured it to be faster (`TileTable.overlaps`).
"""

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait():
    """Let the next kernel begin, and wait for the one ahead; before anything it wrote is read."""
    gdc_launch_dependents()
    gdc_wait()


@triton.jit
def prefetch(at):
    """Fetch the lines at these addresses, which must be valid, into the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [at.to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def options(*, overlaps: bool) -> dict[str, Any]:
    """What such a kernel is launched with."""
    return {"OVERLAPS": True, "launch_pdl": True} if overlaps else {"OVERLAPS": False}
