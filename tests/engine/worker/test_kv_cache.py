"""The KV pool's tensors: layers share no memory, and take as much as the budget counts."""

import resource
from itertools import count
from pathlib import Path

import pytest
import torch
from tiny_model import write_tiny_llama

from engine.model.spec import ModelSpec
from engine.worker.kv_cache import allocate_cache, block_size_bytes, map_layers

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


def test_a_token_is_copied_in_every_layer(tmp_path: Path) -> None:
    spec = ModelSpec.from_directory(write_tiny_llama(tmp_path))
    cache = allocate_cache(spec, 2, 16, dtype=torch.float32, device=torch.device("cpu"))
    for layer in cache:
        layer.keys.normal_()
        layer.values.normal_()
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache]
    cache.copy_token(20, 3)
    for layer, kept in zip(cache, before, strict=True):
        for tensor, old in zip((layer.keys, layer.values), kept, strict=True):
            assert torch.equal(tensor[3], old[20])
            tensor[3] = old[3]
            assert torch.equal(tensor, old)


def test_first_blocks_wait_for_no_memory() -> None:
    """First pages, which may have 2 MB, are touched while loading, not by the first prompt."""
    layers = map_layers(32, (2048, 1, 64), torch.float32)
    layers[0].keys[1] = 1  # torch may allocate memory of its own the first time
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for layer in layers:
        layer.keys[1] = 1
        layer.values[1] = 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 8
