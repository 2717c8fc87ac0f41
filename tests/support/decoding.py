"""Runs a decoder on one sequence, chunk by chunk, without the decode step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model.decoder import Decoder, Segment
from engine.model.ops.interface import TokenBatch
from engine.worker.kv_cache import allocate_cache

BLOCK_SIZE = 16


class Decoding:
    """One sequence with its own KV cache, whose blocks are used from the last one down."""

    def __init__(self, decoder: Decoder, max_tokens: int) -> None:
        self._decoder = decoder
        self._num_blocks = -(-max_tokens // BLOCK_SIZE)
        self._cache = allocate_cache(
            decoder.spec,
            self._num_blocks,
            BLOCK_SIZE,
            dtype=decoder.ops.dtype,
            device=decoder.ops.device,
        )
        self._num_tokens = 0

    @torch.inference_mode()
    def push(self, token_ids: Sequence[int]) -> Tensor:
        """Append tokens, and return their logits [T, V]."""
        return self._decoder.logits(self.push_hidden(token_ids))

    @torch.inference_mode()
    def push_hidden(self, token_ids: Sequence[int]) -> Tensor:
        """Append tokens, and return their last-layer states [T, E]."""
        positions = torch.arange(self._num_tokens, self._num_tokens + len(token_ids))
        self._num_tokens += len(token_ids)
        table = torch.arange(self._num_blocks - 1, -1, -1)
        slots = table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        batch = TokenBatch(
            positions=positions.int(),
            slots=slots.int(),
            rows=torch.zeros_like(positions, dtype=torch.int32),
            block_tables=table[None].int().contiguous(),
            block_size=BLOCK_SIZE,
        )
        decoder = self._decoder
        hidden = decoder.embed(torch.tensor(token_ids, dtype=torch.int32))
        return decoder.run(hidden, Segment(0, decoder.spec.num_layers), self._cache, batch)
