"""Measures the device's copy bandwidth, and how well single operations use it."""

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.gpu.bench import Bench, Model
from benchmarks.gpu.report import Part
from benchmarks.gpu.timing import copies_for, copy_bandwidth, seconds
from engine.model.decoder import Segment
from engine.model.ops.interface import LayerCache, TokenBatch

_BLOCK = 16


def measure(bench: Bench, part: Part) -> None:
    """Measure the copy bandwidth, and linears, norm, attention and sampling of the big model."""
    bandwidth = copy_bandwidth(bench.device, 1 << 22 if bench.is_quick else 1 << 31)
    part.add("copy, bytes read and written", bandwidth / 1e9, "GB/s")
    with torch.inference_mode():
        _linears(bench, part, bench.big, bandwidth)
        _norm(bench, part, bench.big)
        _attention(bench, part, bench.big)
        _sampling(bench, part, bench.big)


def _linears(bench: Bench, part: Part, model: Model, bandwidth: float) -> None:
    ops = model.ops
    for name, (rows, columns) in model.linears.items():
        num_bytes = rows * columns * ops.dtype.itemsize
        copies = 1 if bench.is_quick else copies_for(num_bytes)
        raw = [
            torch.randn(rows, columns, device=bench.device, dtype=ops.dtype) for _ in range(copies)
        ]
        packed = [ops.pack(weight) for weight in raw]
        for count in (1, 6) if bench.is_quick else (1, 6, 16, 64, 512):
            x = torch.randn(count, columns, device=bench.device, dtype=ops.dtype)
            norm = torch.ones(columns, device=bench.device, dtype=ops.dtype)
            if name == "gate_up":
                calls = [partial(ops.gate_up, x, w, norm=norm, eps=1e-5) for w in packed]
            else:
                calls = [partial(ops.linear, x, w) for w in packed]
            ours = seconds(calls, bench.device)
            library = seconds([partial(F.linear, x, w) for w in raw], bench.device)
            part.add(
                f"{name}, {count} tokens: us, share of copy, library's time / ours",
                f"{ours * 1e6:.1f} {num_bytes / ours / bandwidth:.0%} {library / ours:.2f}",
            )


def _norm(bench: Bench, part: Part, model: Model) -> None:
    """Measure how much longer a product takes with a norm, a kernel of its own, before it."""
    weight = model.ops.pack(torch.randn(16, model.shape.hidden, device=bench.device))
    norm = torch.ones(model.shape.hidden, device=bench.device, dtype=model.ops.dtype)
    for count in (1, 6):
        x = torch.randn(count, model.shape.hidden, device=bench.device).to(model.ops.dtype)
        normed = partial(model.ops.linear, x, weight, norm=norm, eps=1e-5)
        bare = partial(model.ops.linear, x, weight)
        took = seconds([normed] * 8, bench.device) - seconds([bare] * 8, bench.device)
        part.add(f"a norm before a product, {count} tokens", took * 1e6, "us")


def _attention(bench: Bench, part: Part, model: Model) -> None:
    params, shape = model.decoder.layers[0].attention, model.shape
    cases = ((1, 1, 1024), (1, 6, 1024), (64, 1, 1024), (1, 1, 4096), (1, 512, 1024))
    for num_rows, count, context in ((1, 6, 64),) if bench.is_quick else cases:
        batch = _newest_tokens(num_rows, count, context, bench.device)
        pool = (num_rows * context, shape.kv_heads, params.head_size)
        cache = LayerCache(
            keys=torch.randn(pool, device=bench.device).to(model.ops.dtype),
            values=torch.randn(pool, device=bench.device).to(model.ops.dtype),
        )
        width = (shape.heads + 2 * shape.kv_heads) * params.head_size
        qkv = torch.randn(num_rows * count, width, device=bench.device).to(model.ops.dtype)
        took = seconds([partial(model.ops.attention, qkv, params, cache, batch)], bench.device)
        name = f"attention of a layer, {num_rows} rows, {count} tokens each at {context}"
        part.add(name, took * 1e6, "us")


def _newest_tokens(num_rows: int, count: int, context: int, device: torch.device) -> TokenBatch:
    """Return a batch of the last `count` tokens of each row, with scattered blocks."""
    blocks = context // _BLOCK
    tables = torch.randperm(num_rows * blocks, device=device).int().view(num_rows, blocks)
    rows = torch.arange(num_rows, device=device).repeat_interleave(count)
    positions = torch.arange(context - count, context, device=device).repeat(num_rows)
    slots = tables[rows, positions // _BLOCK] * _BLOCK + positions % _BLOCK
    return TokenBatch(
        positions=positions.int(),
        slots=slots.int(),
        rows=rows.int(),
        block_tables=tables,
        block_size=_BLOCK,
    )


def _sampling(bench: Bench, part: Part, model: Model) -> None:
    for count in (1, 16):
        logits = torch.randn(count, model.shape.vocabulary, device=bench.device)
        keys = torch.arange(count, device=bench.device)
        scales = torch.ones(count, device=bench.device)
        took = seconds([partial(model.ops.sample, logits, scales, keys)], bench.device)
        part.add(f"sampling {count} rows of {model.shape.vocabulary}", took * 1e6, "us")


def pass_seconds(bench: Bench, model: Model, num_tokens: int) -> float:
    """Return the device time of one whole pass at the benchmark's context, run as a graph."""
    decoder, ops = model.decoder, model.ops
    blocks = -(-(bench.context + num_tokens) // _BLOCK)
    pool = (blocks * _BLOCK, model.shape.kv_heads, decoder.spec.head_size)
    cache = [
        LayerCache(
            keys=torch.zeros(pool, device=ops.device, dtype=ops.dtype),
            values=torch.zeros(pool, device=ops.device, dtype=ops.dtype),
        )
        for _ in range(model.shape.layers)
    ]
    positions = torch.arange(bench.context, bench.context + num_tokens, device=ops.device).int()
    batch = TokenBatch(
        positions=positions,
        slots=positions,
        rows=torch.zeros_like(positions),
        block_tables=torch.arange(blocks, device=ops.device).int()[None],
        block_size=_BLOCK,
    )
    segment = Segment(0, model.shape.layers)

    def run() -> None:
        decoder.logits(decoder.run(decoder.embed(positions), segment, cache, batch))

    with torch.inference_mode():
        return seconds([run], bench.device)
