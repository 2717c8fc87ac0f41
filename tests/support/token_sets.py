"""Sets of tokens as `Ops.exclude` takes them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def random_sets(rows: Sequence[int], vocab_size: int) -> Tensor:
    """Return [M, 1 + W] int32: for each row, its index and a random half of the tokens as bits."""
    generator = torch.Generator().manual_seed(7)
    size = (len(rows), -(-vocab_size // 32))
    words = torch.randint(-(2**31), 2**31, size, generator=generator).int()
    return torch.cat((torch.tensor(rows, dtype=torch.int32)[:, None], words), dim=1)
