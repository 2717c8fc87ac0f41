"""Small tables of numbers on their way to the device, without waiting for it.

From ordinary memory a copy to a GPU waits for all that was launched before, so every list sent in
the middle of a step would stop the host until the segments so far are done. From pinned memory it
queues like a kernel; torch keeps the pinned bytes until it has run.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers, or rows of them, as a tensor on the device."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def upload_to(target: Tensor, values: Sequence[Any]) -> None:
    """Numbers, or rows of them, into a buffer on the device."""
    is_away = target.device.type == "cuda"
    numbers = torch.tensor(values, dtype=target.dtype, pin_memory=is_away)
    target.copy_(numbers, non_blocking=is_away)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU's on the device."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
