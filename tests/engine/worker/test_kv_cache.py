"""The KV pool's tensors: each layer's own, as large as the budget counts them."""

from itertools import count
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_llama

from engine.model.spec import ModelSpec
from engine.worker.kv_cache import allocate_cache, block_size_bytes

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_layer_writes_into_anothers_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    spec = ModelSpec.from_directory(write_tiny_llama(tmp_path))
    cache = allocate_cache(spec, 5, 16, dtype=dtype, device=torch.device("cpu"))
    tensors = [tensor for layer in cache for tensor in (layer.keys, layer.values)]
    for tensor, number in zip(tensors, count(1), strict=False):
        assert tensor.is_contiguous()
        assert tensor.shape == (5 * 16, spec.num_kv_heads, spec.head_size)
        tensor.fill_(number)
    assert all((tensor == number).all() for tensor, number in zip(tensors, count(1), strict=False))
    assert sum(tensor.nbytes for tensor in tensors) == 5 * block_size_bytes(spec, 16, dtype)
