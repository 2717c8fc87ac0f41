"""The paged KV pool: tensors by layer. Who owns which block is the control plane's affair."""

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from engine.model.ops.interface import LayerCache
from engine.model.spec import ModelSpec

_HUGE_PAGE = 2 << 20  # bytes


def block_size_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes one block takes over all layers, keys and values."""
    per_token = spec.num_layers * spec.num_kv_heads * spec.head_size * 2
    return per_token * block_size * dtype.itemsize


class KvCache(list[LayerCache]):
    """Layers' keys and values, all in one piece of memory."""

    def __init__(self, whole: Tensor) -> None:
        """Args:
        whole: [L, 2, N * B, Hkv, D], a layer's keys before its values.
        """
        super().__init__(LayerCache(keys=keys, values=values) for keys, values in whole)
        self._whole = whole

    def copy_token(self, source: int, target: int) -> None:
        """One token's keys and values of all layers, from slot to slot, in one launch."""
        self._whole[:, :, target] = self._whole[:, :, source]


def allocate_cache(
    spec: ModelSpec, num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
) -> KvCache:
    """A pool of so many blocks. Most memory of a CPU's is left untouched: the system hands out
    pages as blocks are first used.
    """
    shape = (num_blocks * block_size, spec.num_kv_heads, spec.head_size)
    if device.type == "cpu":
        return map_layers(spec.num_layers, shape, dtype)
    return KvCache(torch.empty(spec.num_layers, 2, *shape, dtype=dtype, device=device))


def map_layers(num_layers: int, shape: Sequence[int], dtype: torch.dtype) -> KvCache:
    """Layers' keys and values, each of the shape, one after another in a CPU's memory."""
    whole = (num_layers, 2, *shape)
    pool = _map_memory(math.prod(whole) * dtype.itemsize).view(dtype).view(whole)
    # Two huge pages a layer to begin with: else the first prompt waits for all of them.
    pool[:, :, 0] = 0
    return KvCache(pool)


def _map_memory(num_bytes: int) -> Tensor:
    """Memory in huge pages where the system has them: attention walks through all of a context, and
    in small pages much of its time goes into their addresses.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, num_bytes + _HUGE_PAGE, flags=flags)
    with suppress(AttributeError, OSError):  # a system, or a kernel, without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    skip = -raw.data_ptr() % _HUGE_PAGE
    return raw[skip : skip + num_bytes]
