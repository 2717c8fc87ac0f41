"""Gives torch the cores while heads are trained; otherwise the engine's own kernels have them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.config import ModelConfig
from engine.worker.cores import usable_cores


@contextmanager
def torch_threads(model: ModelConfig) -> Iterator[None]:
    """Let torch compute with all threads that the model may use, inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(model.num_threads or usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)
