"""Layers run in one call equal the operations they are made of, to the bit."""

import pytest
import torch
from backends import form_name, ops_of_every_form
from torch import Tensor

from engine.model.ops.interface import AttentionParams, DecoderLayer, LayerCache, Ops, TokenBatch
from engine.model.ops.layers import run_layers

pytestmark = pytest.mark.torch

EPS = 1e-5
HEADS, KV_HEADS, HEAD_SIZE, HIDDEN = 6, 2, 16, 64
BLOCK_SIZE, NUM_BLOCKS = 4, 32


@pytest.fixture(scope="module", params=ops_of_every_form(), ids=form_name)
def ops(request: pytest.FixtureRequest) -> Ops:
    return request.param


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5


def make_layer(ops: Ops, seed: int, width: int, *, has_bias: bool) -> DecoderLayer:
    angles = torch.rand(64, HEAD_SIZE // 2)
    attended, qkv = HEADS * HEAD_SIZE, (HEADS + 2 * KV_HEADS) * HEAD_SIZE
    return DecoderLayer(
        input_norm=randn(HIDDEN, seed=seed) + 1,
        qkv=ops.pack(randn(qkv, HIDDEN, seed=seed + 1), randn(qkv, seed=7) if has_bias else None),
        attention=AttentionParams(
            num_heads=HEADS,
            num_kv_heads=KV_HEADS,
            head_size=HEAD_SIZE,
            scale=HEAD_SIZE**-0.5,
            rope_cos=angles.cos(),
            rope_sin=angles.sin(),
            norm_eps=EPS,
        ),
        output=ops.pack(randn(HIDDEN, attended, seed=seed + 2)),
        mlp_norm=randn(HIDDEN, seed=seed + 3) + 1,
        gate_up=ops.pack(randn(2 * width, HIDDEN, seed=seed + 4)),
        down=ops.pack(randn(HIDDEN, width, seed=seed + 5)),
    )


def make_caches(count: int) -> list[LayerCache]:
    shape = (NUM_BLOCKS * BLOCK_SIZE, KV_HEADS, HEAD_SIZE)
    return [LayerCache(keys=torch.zeros(shape), values=torch.zeros(shape)) for _ in range(count)]


def batch_of(positions: list[int]) -> TokenBatch:
    table = torch.arange(NUM_BLOCKS, dtype=torch.int32).flip(0)[None].contiguous()
    at = torch.tensor(positions)
    return TokenBatch(
        positions=at.to(torch.int32),
        slots=(table[0, at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE).to(torch.int32),
        rows=torch.zeros(len(positions), dtype=torch.int32),
        block_tables=table,
        block_size=BLOCK_SIZE,
    )


@pytest.mark.parametrize("width", [96, 40])  # half of gate and up: 40 is no whole number of panels
@pytest.mark.parametrize("has_bias", [False, True])
def test_layers_are_the_operations_they_are_made_of(ops: Ops, width: int, has_bias: bool) -> None:
    layers = [make_layer(ops, 10 * i, width, has_bias=has_bias) for i in range(3)]
    apart, together = make_caches(3), make_caches(3)
    hidden = randn(20, HIDDEN, seed=99)
    before = hidden.clone()
    for positions in ([0], [1, 2, 3], list(range(4, 20))):  # each sees what the calls before wrote
        x, batch = hidden[positions], batch_of(positions)
        expected = run_layers(ops, x, layers, apart, batch, EPS)
        assert torch.equal(ops.run_layers(x, layers, together, batch, EPS), expected)
    for one, other in zip(apart, together, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)
    assert torch.equal(hidden, before)


def test_other_caches_of_the_same_layers_are_told_apart(ops: Ops) -> None:
    layers = [make_layer(ops, 10 * i, 96, has_bias=False) for i in range(2)]
    x, batch = randn(1, HIDDEN, seed=99), batch_of([0])
    for caches in (make_caches(2), make_caches(2)):
        ops.run_layers(x, layers, caches, batch, EPS)
        assert all(cache.keys.any() for cache in caches)


def test_part_of_the_layers_runs_alone(ops: Ops) -> None:
    layers, caches = [make_layer(ops, 10 * i, 96, has_bias=False) for i in range(3)], make_caches(3)
    x, batch = randn(2, HIDDEN, seed=99), batch_of([0, 1])
    whole = ops.run_layers(x, layers, caches, batch, EPS)
    middle = ops.run_layers(x, layers[:1], caches[:1], batch, EPS)
    assert torch.equal(ops.run_layers(middle, layers[1:], caches[1:], batch, EPS), whole)
