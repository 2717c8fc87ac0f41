"""Tensors as C takes them: by where their elements lie."""

import torch
from torch import Tensor


def address(tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """Where the elements lie; C knows neither strides nor types."""
    assert tensor.dtype is dtype, f"native kernels: {tensor.dtype} instead of {dtype}"
    assert tensor.is_contiguous(), "native kernels: a tensor is not contiguous"
    return tensor.data_ptr()


def optional_address(tensor: Tensor | None, dtype: torch.dtype = torch.float32) -> int | None:
    """`address`; None, which C takes for NULL, where there is no tensor."""
    return None if tensor is None else address(tensor, dtype)
