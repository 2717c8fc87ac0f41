"""The tokens of an only stream, as a decoder takes them. Needs torch only."""

import torch

from engine.model.ops.interface import TokenBatch

BLOCK_SIZE = 16  # tokens of a KV block


def num_blocks(num_tokens: int) -> int:
    """Return how many KV blocks a stream of that length needs."""
    return -(-num_tokens // BLOCK_SIZE)


def stream_batch(first: int, count: int) -> TokenBatch:
    """Return `count` tokens from position `first` on, of a stream whose blocks lie in order."""
    positions = torch.arange(first, first + count, dtype=torch.int32)
    return TokenBatch(
        positions=positions,
        slots=positions,
        rows=torch.zeros(count, dtype=torch.int32),
        block_tables=torch.arange(num_blocks(first + count), dtype=torch.int32)[None],
        block_size=BLOCK_SIZE,
    )
