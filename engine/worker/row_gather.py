"""Takes some rows of a tensor, without a copy if none is needed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.worker.upload import upload


def take_rows(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    """Return the rows of a [T, ...] tensor at these indices, in their order.

    If all rows are taken, that is the tensor itself; if neighbouring rows are, it is a view. So the
    result is read-only, and valid only until the tensor is overwritten.
    """
    first, count = (indices[0], len(indices)) if indices else (0, 0)
    if list(indices) != list(range(first, first + count)):
        return copy_rows(tensor, indices)
    return tensor if count == len(tensor) else tensor[first : first + count]


def copy_rows(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    """Return a copy of the rows of a [T, ...] tensor at these indices, in their order."""
    return tensor.index_select(0, upload(indices, torch.int64, tensor.device))
