"""Classifies what torch raises: out of memory, a broken device, or an ordinary fault."""

import torch

_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_BROKEN_DEVICE = (
    "CUDA error",
    "Triton Error",  # raised by launches of our own kernels
    "device-side assert",
    "illegal memory access",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; torch's CPU allocator says so only in its message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def is_row_fault(error: Exception) -> bool:
    """Whether only the row being processed is to blame: the device and memory are fine."""
    return not is_out_of_memory(error) and not is_device_broken(error)


def is_device_broken(error: Exception) -> bool:
    """Whether nothing more can be computed in this process."""
    text = str(error)
    return not is_out_of_memory(error) and any(sign in text for sign in _BROKEN_DEVICE)
