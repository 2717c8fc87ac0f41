"""Times the native kernels: `python -m benchmarks.kernels`.

One run times the default model's linears for several numbers of tokens, beside torch's `F.linear`,
and attention, sampling and reading memory. A figure is the least of many single calls, with weights
and KV cache cold as in a forward pass. Other work on the machine shows in it all the same, so the
ratios tell more. Needs torch only.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import describe_machine, print_facts, read_bandwidth
from benchmarks.native_flags import require_native
from engine.model.ops.interface import AttentionParams, LayerCache, TokenBatch
from engine.model.ops.native_ops import NativeOps
from engine.worker.cores import usable_cores
from engine.worker.kv_cache import map_layers

# SmolLM2-135M: (name, out, in).
_LINEARS = (
    ("qkv", 960, 576),
    ("output", 576, 576),
    ("gate_up", 3072, 576),
    ("down", 576, 1536),
    ("lm_head", 49152, 576),
)
_TOKENS = (1, 2, 4, 8, 16, 64, 256)
_HEADS, _KV_HEADS, _HEAD_SIZE, _VOCABULARY, _BLOCK = 9, 3, 64, 49152, 16
_LAYERS = 8  # enough that no cache holds their keys and values at 4,096 tokens
_COLD_BYTES = 96 * 2**20  # copies of a weight take so much together that no cache holds them


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--only", choices=("linears", "attention", "sampling"))
    parser.add_argument("--repeats", type=int, default=9, help="of every call (%(default)s)")
    args = parser.parse_args()
    require_native()
    torch.set_num_threads(args.threads)
    ops = NativeOps(args.threads)
    print_facts(describe_machine() | {"threads": str(args.threads)})
    with torch.inference_mode():
        print(f"{'memory':<12} {read_bandwidth(args.repeats):.1f} GB/s read by torch's sum\n")
        tables = {
            "linears": _print_linears,
            "attention": _print_attention,
            "sampling": _print_sampling,
        }
        for name, print_table in tables.items():
            if args.only in (None, name):
                print_table(ops, args.repeats)


def _in_turn(call: Callable[[Any], object], arguments: Sequence[Any]) -> Callable[[int], object]:
    """Give call number i argument i modulo their number, so that its data is cold again."""
    return lambda number: call(arguments[number % len(arguments)])


def _least_seconds(call: Callable[[int], object], num_calls: int) -> float:
    """Return the least time of a call, which is given its number."""
    call(0)
    least = float("inf")
    for number in range(num_calls):
        start = time.perf_counter()
        call(number)
        least = min(least, time.perf_counter() - start)
    return least


def _print_linears(ops: NativeOps, repeats: int) -> None:
    print("linears: milliseconds (GB/s of weights, x one token's time, torch's time / ours)")
    print("".join([f"{'':<9}", *(f"{f'{tokens} tokens':>26}" for tokens in _TOKENS)]))
    for name, out, size in _LINEARS:
        times = _linear_times(ops, out, size, repeats)
        alone = times[0][0]
        cells = [
            f"{ours * 1e3:.3f} ({out * size * 4e-9 / ours:.1f}, {ours / alone:.2f}x, "
            f"{torchs / ours:.2f})"
            for ours, torchs in times
        ]
        print("".join([f"{name:<9}", *(cell.rjust(26) for cell in cells)]))


def _linear_times(ops: NativeOps, out: int, size: int, repeats: int) -> list[tuple[float, float]]:
    """Return the seconds of our linear and of torch's, for each number of tokens."""
    copies = max(1, min(16, _COLD_BYTES // (out * size * 4)))
    sources = [torch.randn(out, size) * size**-0.5 for _ in range(copies)]
    packed = [ops.pack(source) for source in sources]
    times = []
    for tokens in _TOKENS:
        x = torch.randn(tokens, size)
        calls = (_in_turn(partial(ops.linear, x), packed), _in_turn(partial(F.linear, x), sources))
        ours, torchs = (_least_seconds(call, repeats * copies) for call in calls)
        times.append((ours, torchs))
    return times


def _print_attention(ops: NativeOps, repeats: int) -> None:
    print("\nattention of one layer: milliseconds (GB/s of keys and values)")
    for tokens, context in ((1, 1024), (4, 1024), (1, 4096), (4, 4096), (512, 512), (512, 4096)):
        params, caches, batch = _attention_case(tokens, context)
        qkv = torch.randn(tokens, (_HEADS + 2 * _KV_HEADS) * _HEAD_SIZE)

        def call(
            number: int,
            qkv: Tensor = qkv,
            params: AttentionParams = params,
            caches: Sequence[LayerCache] = caches,
            batch: TokenBatch = batch,
        ) -> Tensor:
            return ops.attention(qkv, params, caches[number % len(caches)], batch)

        seconds = _least_seconds(call, repeats * len(caches))
        gigabytes = 2 * context * _KV_HEADS * _HEAD_SIZE * 4e-9
        print(
            f"{tokens:>5} tokens at {context:>5}: {seconds * 1e3:8.3f} ({gigabytes / seconds:.1f})"
        )


def _attention_case(
    tokens: int, context: int
) -> tuple[AttentionParams, Sequence[LayerCache], TokenBatch]:
    """Return a batch of the last tokens of a row with scattered blocks, and some layers' caches."""
    angles = torch.rand(context, _HEAD_SIZE // 2)
    params = AttentionParams(
        num_heads=_HEADS,
        num_kv_heads=_KV_HEADS,
        head_size=_HEAD_SIZE,
        scale=_HEAD_SIZE**-0.5,
        rope_cos=angles.cos(),
        rope_sin=angles.sin(),
        norm_eps=1e-5,
    )
    shape = (context, _KV_HEADS, _HEAD_SIZE)
    caches = map_layers(_LAYERS, shape, torch.float32)
    for cache in caches:
        cache.keys.normal_()
        cache.values.normal_()
    table = torch.randperm(context // _BLOCK)
    positions = torch.arange(context - tokens, context)
    batch = TokenBatch(
        positions=positions.to(torch.int32),
        slots=(table[positions // _BLOCK] * _BLOCK + positions % _BLOCK).to(torch.int32),
        rows=torch.zeros(tokens, dtype=torch.int32),
        block_tables=table[None].to(torch.int32),
        block_size=_BLOCK,
    )
    return params, caches, batch


def _print_sampling(ops: NativeOps, repeats: int) -> None:
    print("\nsampling: milliseconds")
    for rows in (1, 4):
        logits, keys = torch.randn(rows, _VOCABULARY), torch.arange(rows)
        for name, scale in (("greedy", 0.0), ("with noise", 1.0)):
            scales = torch.full((rows,), scale)
            call = _in_turn(partial(ops.sample, logits, scales), [keys])
            seconds = _least_seconds(call, repeats)
            print(f"{rows} rows of {_VOCABULARY}, {name:<10}: {seconds * 1e3:.3f}")


if __name__ == "__main__":
    main()
