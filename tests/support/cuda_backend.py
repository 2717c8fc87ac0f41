"""The CUDA backend on a GPU, or in Triton's interpreter on a CPU.

Import this before anything that imports Triton kernels, because the choice is made when they are
defined. Tests that need the backend are skipped where Triton is not installed.
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
# The interpreter multiplies bfloat16 as if they were integers; float16 it takes from numpy.
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16


def _works() -> bool:
    """Whether Triton's interpreter works: with some versions of numpy it breaks its process."""
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

# Rows keep their bits on a GPU only: numpy's products, which the interpreter uses, do not.
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def cuda_ops(dtype: torch.dtype = torch.float32, *, exact: bool = True) -> CudaOps:
    """Return the backend on a GPU, or in the interpreter."""
    return CudaOps(dtype, exact=exact, device=DEVICE)
