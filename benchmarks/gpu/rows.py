"""Checks that our kernels compute what plain torch does, and the same bits in any batch."""

from dataclasses import replace

import torch

from benchmarks.gpu.bench import Bench, Model
from benchmarks.gpu.report import Part
from benchmarks.gpu.shapes import RandomWeights
from engine.model.decoder import Decoder, Segment
from engine.model.exact_rows import CHECKED_COUNTS, uneven_counts
from engine.model.ops.interface import LayerCache, TokenBatch
from engine.model.ops.torch_ops import TorchOps
from engine.worker.kv_cache import allocate_cache

_BLOCK = 16
_LAYERS = 2
_PAST = 300


def measure(bench: Bench, part: Part) -> None:
    """Check the shapes of both models."""
    for model in (bench.big, bench.small):
        uneven = uneven_counts(model.decoder)
        verdict = "exact" if not uneven else f"uneven at {uneven}"
        counts = ", ".join(map(str, CHECKED_COUNTS))
        part.add(f"{model.shape.name}: rows among {counts}", verdict, is_met=not uneven)
        if uneven:
            _name_products(part, model)
        for count in (1, 5) if bench.is_quick else (1, 5, 40):
            error = _distance(model.decoder, count)
            limit = 2e-2 if model.ops.dtype.itemsize == 2 else 1e-4
            part.add(
                f"{model.shape.name}: {count} tokens, distance from torch in float32",
                error,
                is_met=error < limit,
            )


@torch.inference_mode()
def _name_products(part: Part, model: Model) -> None:
    """Report which products are uneven; if none is, attention or a norm must be."""
    ops = model.ops
    for name, shape in model.linears.items():
        weight = ops.pack(torch.randn(*shape, device=ops.device) / shape[1] ** 0.5)
        x = torch.randn(max(CHECKED_COUNTS), shape[1], device=ops.device).to(ops.dtype)
        alone = torch.cat([ops.linear(row, weight) for row in x.split(1)])
        uneven = [
            count
            for count in CHECKED_COUNTS
            if not torch.equal(ops.linear(x[:count], weight), alone[:count])
        ]
        part.add(f"{model.shape.name}: {name} uneven at", str(uneven))


@torch.inference_mode()
def _distance(decoder: Decoder, count: int) -> float:
    """Return |ours - torch's| / |torch's| of the states of `count` tokens after a few layers."""
    ops, spec = decoder.ops, decoder.spec
    past = min(_PAST, decoder.layers[0].attention.rope_cos.shape[0] - 64)
    width = -(-(past + count) // _BLOCK)
    table = torch.randperm(width, generator=torch.Generator().manual_seed(1)).int()
    positions = torch.arange(past, past + count, dtype=torch.int32)
    slots = table[positions // _BLOCK] * _BLOCK + positions % _BLOCK
    batch = TokenBatch(
        positions=positions.to(ops.device),
        slots=slots.int().to(ops.device),
        rows=torch.zeros(count, dtype=torch.int32, device=ops.device),
        block_tables=table[None].to(ops.device),
        block_size=_BLOCK,
    )
    segment = Segment(0, min(_LAYERS, spec.num_layers))
    cache = allocate_cache(spec, width, _BLOCK, dtype=ops.dtype, device=ops.device)
    for layer in cache:
        layer.keys.normal_()
        layer.values.normal_()
    wide = [LayerCache(keys=c.keys.float(), values=c.values.float()) for c in cache]
    hidden = torch.randn(count, spec.hidden_size, device=ops.device).to(ops.dtype)
    ours = decoder.run(hidden, segment, cache, batch).float()
    reference = _in_float32(decoder, segment.end)
    theirs = reference.run(hidden.float(), segment, wide, batch)
    return float((ours - theirs).norm() / theirs.norm())


def _in_float32(decoder: Decoder, num_layers: int) -> Decoder:
    """Return the first layers of a random model on plain torch, with the same weights."""
    spec = replace(decoder.spec, num_layers=num_layers)
    source = RandomWeights(spec, decoder.ops.device, decoder.ops.dtype)
    return Decoder.build(spec, source, TorchOps(decoder.ops.device))
