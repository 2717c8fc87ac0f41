"""Who has the cores: the engine's kernels while generating, torch while heads are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.config import ModelConfig
from engine.worker.cores import usable_cores


@contextmanager
def torch_threads(model: ModelConfig) -> Iterator[None]:
    """Torch computes with all threads that the model has, for as long as this lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(model.num_threads or usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)
