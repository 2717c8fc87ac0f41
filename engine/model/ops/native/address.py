"""Addresses of tensors, which is how C takes them."""

import torch
from torch import Tensor


def address(tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """Return the address of the elements; checks type and layout, which C does not know."""
    assert tensor.dtype is dtype, f"native kernels: {tensor.dtype} instead of {dtype}"
    assert tensor.is_contiguous(), "native kernels: a tensor is not contiguous"
    return tensor.data_ptr()


def optional_address(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    """Return the `address`, or None (for C: NULL) if there is no tensor."""
    return None if tensor is None else address(tensor, dtype)
