"""What training does otherwise on a GPU: the host keeps out of the way, and states are made again
in its memory rather than kept on the disk.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.model.decoder import Decoder


def is_used(decoder: Decoder) -> bool:
    """Whether a model is on one."""
    return decoder.ops.device.type == "cuda"


@contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """On a GPU float32 products may round their factors to TF32, for as long as this lasts: some
    ten times as fast, and still finer than the 16 bits that heads are stored and served in.
    """
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
