"""The tensors of the paged KV pool. The control plane decides which sequence owns which block."""

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
    """Return the bytes of one block's keys and values in all layers."""
    per_token = spec.num_layers * spec.num_kv_heads * spec.head_size * 2
    return per_token * block_size * dtype.itemsize


class KvCache(list[LayerCache]):
    """The keys and values of all layers, in one tensor."""

    def __init__(self, whole: Tensor) -> None:
        """
        Args:
            whole: [L, 2, N * B, Hkv, D], a layer's keys before its values.
        """
        super().__init__(LayerCache(keys=keys, values=values) for keys, values in whole)
        self._whole = whole

    def copy_token(self, source: int, target: int) -> None:
        """Copy a token's keys and values in all layers from slot to slot, with one launch."""
        self._whole[:, :, target] = self._whole[:, :, source]


def allocate_cache(
    spec: ModelSpec, num_blocks: int, block_size: int, *, dtype: torch.dtype, device: torch.device
) -> KvCache:
    """Allocate a pool of `num_blocks` blocks.

    On a CPU most of its memory is left untouched: the system provides pages as blocks are first
    used.
    """
    shape = (num_blocks * block_size, spec.num_kv_heads, spec.head_size)
    if device.type == "cpu":
        return map_layers(spec.num_layers, shape, dtype)
    return KvCache(torch.empty(spec.num_layers, 2, *shape, dtype=dtype, device=device))


def map_layers(num_layers: int, shape: Sequence[int], dtype: torch.dtype) -> KvCache:
    """Allocate the layers' keys and values, each of the given shape, in the CPU's memory."""
    whole = (num_layers, 2, *shape)
    pool = _map_memory(math.prod(whole) * dtype.itemsize).view(dtype).view(whole)
    # Touch the first pages of every layer now, or the first prompt would wait for all of them.
    pool[:, :, 0] = 0
    return KvCache(pool)


def _map_memory(num_bytes: int) -> Tensor:
    """Map memory in huge pages if the system has them.

    Attention reads all of a context; with small pages, address translation takes much of its time.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, num_bytes + _HUGE_PAGE, flags=flags)
    with suppress(AttributeError, OSError):  # a platform or a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    raw = torch.frombuffer(memory, dtype=torch.uint8)
    skip = -raw.data_ptr() % _HUGE_PAGE
    return raw[skip : skip + num_bytes]
