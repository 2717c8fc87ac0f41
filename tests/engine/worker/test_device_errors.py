"""Errors of torch, cuBLAS and Triton: out of memory, a broken device, or an ordinary fault."""

import pytest
import torch

from engine.worker.device_errors import is_device_broken, is_out_of_memory, is_row_fault

pytestmark = pytest.mark.torch

_NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total …"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]
_BROKEN = [
    torch.AcceleratorError(
        "CUDA error: device-side assert triggered\nSearch for `cudaErrorAssert`"
    ),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(…)`"),
]
_ORDINARY = [IndexError("no such column"), ValueError("a fault"), RuntimeError("shapes differ")]


def verdicts(error: Exception) -> list[bool]:
    return [is_out_of_memory(error), is_device_broken(error), is_row_fault(error)]


@pytest.mark.parametrize("error", _NO_MEMORY, ids=str)
def test_out_of_memory(error: Exception) -> None:
    assert verdicts(error) == [True, False, False]


@pytest.mark.parametrize("error", _BROKEN, ids=str)
def test_a_broken_device(error: Exception) -> None:
    assert verdicts(error) == [False, True, False]


@pytest.mark.parametrize("error", _ORDINARY, ids=str)
def test_an_ordinary_fault(error: Exception) -> None:
    assert verdicts(error) == [False, False, True]
