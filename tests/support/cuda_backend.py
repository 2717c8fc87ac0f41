"""The CUDA backend wherever it can run: on a GPU, or on a CPU in Triton's interpreter.

Import this before anything that imports Triton kernels: whether they are interpreted is decided
when they are defined. Tests that need it are skipped where Triton is not installed.
"""

import os
import subprocess
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from engine.model.ops.cuda_ops import CudaOps

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter multiplies bfloat16 as if it were integers; it has float16 from numpy.
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16


def _works() -> bool:
    """Triton's interpreter breaks with some versions of numpy: ask a process of its own."""
    if CudaOps.unavailable_reason() is not None:
        return False
    probe = (
        "import torch\n"
        "from engine.model.ops.cuda_ops import CudaOps\n"
        f"ops = CudaOps(torch.float32, device='{DEVICE}')\n"
        "weight = ops.pack(torch.ones(16, 16))\n"
        f"assert ops.linear(torch.ones(1, 16, device='{DEVICE}'), weight)[0, 0] == 16\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False)
    return done.returncode == 0


needs_triton = pytest.mark.skipif(
    CudaOps.unavailable_reason() is not None, reason="needs Triton (README)"
)
needs_kernels = pytest.mark.skipif(
    not _works(), reason="needs Triton: a GPU, or an interpreter that works (README)"
)

# Bits are the GPU's affair: numpy's products, which the interpreter uses, do not keep them.
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def cuda_ops(dtype: torch.dtype = torch.float32, *, exact: bool = True) -> CudaOps:
    """The backend on the device there is."""
    return CudaOps(dtype, exact=exact, device=DEVICE)
