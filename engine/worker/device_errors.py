"""Telling apart what torch raises: want of memory, a broken device, or an ordinary fault."""

import torch

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_BROKEN_DEVICE = ("CUDA error", "device-side assert", "CUBLAS_STATUS", "CUDNN_STATUS")


def is_out_of_memory(error: Exception) -> bool:
    """Whether more memory would have helped; torch's CPU allocator says so only in words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def is_row_fault(error: Exception) -> bool:
    """Whether only the row that was being processed is to blame: the device and memory are fine."""
    text = str(error)
    return not is_out_of_memory(error) and not any(sign in text for sign in _BROKEN_DEVICE)
