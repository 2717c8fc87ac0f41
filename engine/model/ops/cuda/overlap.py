"""Launch of kernels before the kernel ahead of them has ended.

Hopper calls it programmatic dependent launch. A kernel's programs may start as soon as all programs
of the kernel ahead have started. They fetch what no kernel writes (weights) into the cache, and
then wait for the end of the kernel ahead, which itself waited for the one before. So everything
that a kernel reads has been written, and everything that it overwrites has been read. This saves
the launch, about a microsecond of the dozen or so that most of a layer's kernels take. It changes
no bits.

Off unless `tiles.json` says that it was measured to be faster (`TileTable.overlaps`).
"""

from typing import Any

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait():
    """Let the next kernel start, then wait for the one ahead; call before reading its results."""
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
    """Return the launch options of a kernel that may overlap."""
    return {"OVERLAPS": True, "launch_pdl": True} if overlaps else {"OVERLAPS": False}
