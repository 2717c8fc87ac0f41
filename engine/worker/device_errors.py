"""Telling apart what torch raises: want of memory, a broken device, or an ordinary fault."""

import torch

_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_BROKEN_DEVICE = (
    "CUDA error",
    "Triton Error",  # what launches of our own kernels find out
    "device-side assert",
    "illegal memory access",
    "CUBLAS_STATUS",
    "CUDNN_STATUS",
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether more memory would have helped; torch's CPU allocator says so only in words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def is_row_fault(error: Exception) -> bool:
    """Whether only the row that was being processed is to blame: the device and memory are fine."""
    return not is_out_of_memory(error) and not is_device_broken(error)


def is_device_broken(error: Exception) -> bool:
    """Whether nothing can be computed in this process any more."""
    text = str(error)
    return not is_out_of_memory(error) and any(sign in text for sign in _BROKEN_DEVICE)
