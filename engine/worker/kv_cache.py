"""The paged KV pool: tensors by layer. Who owns which block is the control plane's affair."""

from collections.abc import Sequence

import torch

from engine.model.ops.interface import LayerCache
from engine.model.spec import ModelSpec


def block_size_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes one block takes over all layers, keys and values."""
    per_token = spec.num_layers * spec.num_kv_heads * spec.head_size * 2
    return per_token * block_size * dtype.itemsize


def allocate_cache(
    spec: ModelSpec, num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
) -> Sequence[LayerCache]:
    """One `LayerCache` per layer. Memory is left untouched: the system hands out pages as blocks
    are first used.
    """
    shape = (num_blocks * block_size, spec.num_kv_heads, spec.head_size)
    return [
        LayerCache(
            keys=torch.empty(shape, dtype=dtype, device=device),
            values=torch.empty(shape, dtype=dtype, device=device),
        )
        for _ in range(spec.num_layers)
    ]
