"""Some rows of a tensor, without a copy where none is needed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.worker.upload import upload


def take_rows(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    """Return the rows of a [T, ...] tensor at these indices, in their order.

    All of them are the tensor itself, and neighbours are a view: to be read only, and no longer
    than the tensor holds them.
    """
    first, count = (indices[0], len(indices)) if indices else (0, 0)
    if list(indices) != list(range(first, first + count)):
        return copy_rows(tensor, indices)
    return tensor if count == len(tensor) else tensor[first : first + count]


def copy_rows(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    """Return a copy of the rows of a [T, ...] tensor at these indices, in their order."""
    return tensor.index_select(0, upload(indices, torch.int64, tensor.device))
