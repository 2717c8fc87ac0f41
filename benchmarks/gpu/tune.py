"""Finds the fastest tile for every weight of both models, and whether kernels should overlap.

Every candidate sums in the same order, so the choice changes no bit. Rows are checked again all the
same, and nothing is kept unless they are exact. The rest of the benchmark runs with the result.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import product
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, Model
from benchmarks.gpu.generation import Timed, generate
from benchmarks.gpu.report import Part
from benchmarks.gpu.timing import copies_for, seconds
from engine.model.exact_rows import uneven_counts
from engine.model.ops.cuda.tiles import CANDIDATES, Shape, Tile, TileTable
from engine.model.ops.cuda_ops import CudaLinear, CudaOps
from engine.worker.device_errors import is_device_broken

_SECONDS = 50.0  # no further weight is begun after this time
_COMPILERS = 8  # threads
_CHECK_SECONDS = 10.0  # reserved for the check of exact rows and for writing the file
_TOKENS = {"few": (1, 6), "some": (48,), "many": (512,)}  # numbers of tokens timed per class


def measure(bench: Bench, part: Part) -> None:
    """Time the candidates, the most used classes first, until the time is over."""
    own = {
        model.shape.name: (model, model.ops)
        for model in (bench.big, bench.small)
        if isinstance(model.ops, CudaOps)
    }
    if not own:
        part.add("tiles", "left out: not our kernels")
        return
    deadline = perf_counter() + min(_SECONDS, part.left_s - _CHECK_SECONDS)
    found = TileTable()
    works = [
        (kind, model, ops, name)
        for kind, (model, ops) in product(CANDIDATES, own.values())
        for name in model.linears
    ]
    for kind, model, ops, name in works:
        if perf_counter() > deadline:
            part.add("not tuned for want of time", f"{model.shape.name} {name} and those after it")
            break
        best, gain = _best(bench, ops, model.linears[name], kind, is_gated=name == "gate_up")
        found.put(model.linears[name], kind, best)
        part.add(f"{model.shape.name} {name}, {kind} tokens: {_text(best)}", gain, "x default")
    before = [ops.tiles for _, ops in own.values()]
    for _, ops in own.values():
        ops.tiles = found
    uneven = sorted({count for model, _ in own.values() for count in uneven_counts(model.decoder)})
    verdict = f"uneven at {uneven}" if uneven else "exact"
    part.add("rows with these tiles", verdict, is_met=not uneven)
    if uneven:
        for (_, ops), tiles in zip(own.values(), before, strict=True):
            ops.tiles = tiles
        return
    if not bench.is_cuda:
        return
    gpu = torch.cuda.get_device_name(bench.device)
    part.add("table", str(bench.tiles))
    found.write(gpu, bench.tiles)
    _overlap(bench, part, [model for model, _ in own.values()], found)
    found.write(gpu, bench.tiles)


def _overlap(bench: Bench, part: Part, models: Sequence[Model], found: TileTable) -> None:
    """Let kernels overlap if that is faster, changes no token and keeps rows exact."""
    try:
        before = [_plain(bench, model) for model in models]
        found.overlaps = True
        after = [_plain(bench, model) for model in models]
        is_even = not any(uneven_counts(model.decoder) for model in models)
    except Exception as error:
        found.overlaps = False
        if is_device_broken(error):
            raise
        part.add("kernels that overlap", f"{error}".splitlines()[0])
        return
    for model, without, overlapped in zip(models, before, after, strict=True):
        gain = overlapped.tokens_per_s / without.tokens_per_s
        part.add(f"{model.shape.name}: plain, kernels overlap / do not", gain, "x")
    is_same = [one.token_ids for one in before] == [one.token_ids for one in after]
    part.add("tokens and rows where they do", "the same" if is_same and is_even else "others")
    is_faster = after[0].tokens_per_s > before[0].tokens_per_s
    found.overlaps = is_same and is_even and is_faster


def _plain(bench: Bench, model: Model) -> Timed:
    """Decode one stream plainly, as a worker does."""
    engine = bench.engine(model, max_rows=1)
    prompts = [model.prompt(bench.context // 2)]
    generate(engine, prompts, 4, early_exit=False)
    timed = generate(engine, prompts, bench.length, early_exit=False)
    del engine
    bench.release()
    return timed


def _best(
    bench: Bench, ops: CudaOps, shape: Shape, kind: str, *, is_gated: bool
) -> tuple[Tile, float]:
    """Return the fastest candidate, and how many times as fast as the default tile it is."""
    default = getattr(TileTable().tiles(shape), kind)
    copies = 1 if bench.is_quick else copies_for(shape[0] * shape[1] * ops.dtype.itemsize)
    weights = [
        ops.pack(torch.randn(*shape, device=bench.device, dtype=ops.dtype)) for _ in range(copies)
    ]
    tiles = list(dict.fromkeys((default, *CANDIDATES[kind])))
    cut = {tile: _with_tile(ops, shape, kind, tile) for tile in tiles}
    if bench.is_cuda:
        _compile(bench, list(cut.values()), weights[0], kind, is_gated=is_gated)
    times = {}
    for tile in tiles:
        try:
            times[tile] = _time(bench, cut[tile], weights, kind, is_gated=is_gated)
        except Exception as error:  # it may need more registers or memory than there are
            if is_device_broken(error):
                raise
            print(f"  {tile}: {error}".splitlines()[0], flush=True)
    best = min(times, key=lambda tile: times[tile])
    return best, times[default] / times[best] if default in times else 1.0


def _with_tile(ops: CudaOps, shape: Shape, kind: str, tile: Tile) -> CudaOps:
    """Return the same backend with another tile for one shape."""
    other = copy.copy(ops)
    other.tiles = TileTable()
    other.tiles.put(shape, kind, tile)
    return other


def _compile(
    bench: Bench, cut: Sequence[CudaOps], weight: CudaLinear, kind: str, *, is_gated: bool
) -> None:
    """Compile all candidates in parallel, a third of a second each.

    Errors are ignored: a candidate that fails here fails again when it is timed.
    """

    def call(ops: CudaOps) -> None:
        with suppress(Exception):
            for one in _calls(bench, ops, [weight], _TOKENS[kind][0], is_gated=is_gated):
                one()

    call(cut[0])  # compiles what all candidates share
    with ThreadPoolExecutor(_COMPILERS) as pool:
        list(pool.map(call, cut[1:]))


@torch.inference_mode()
def _time(
    bench: Bench, ops: CudaOps, weights: list[CudaLinear], kind: str, *, is_gated: bool
) -> float:
    """Return the time of one call, over all numbers of tokens that stand for the class."""
    calls = [
        call
        for count in _TOKENS[kind]
        for call in _calls(bench, ops, weights, count, is_gated=is_gated)
    ]
    return seconds(calls, bench.device)


def _calls(
    bench: Bench, ops: CudaOps, weights: Sequence[CudaLinear], count: int, *, is_gated: bool
) -> list[Callable[[], Tensor]]:
    """Return one call for each weight."""
    x = torch.randn(count, weights[0].in_features, device=bench.device, dtype=ops.dtype)
    if is_gated:
        norm = torch.ones_like(x[0])
        return [partial(ops.gate_up, x, w, norm=norm, eps=1e-5) for w in weights]
    return [partial(ops.linear, x, w) for w in weights]


def _text(tile: Tile) -> str:
    cut = f"{tile.rows}x{tile.columns}x{tile.inner}"
    return f"{cut}, {tile.num_warps} warps, {tile.num_stages} stages"
