"""Which tile is the fastest for every weight of both models, timed on the device.

Every candidate sums in the same order, so the choice changes no bit; the rows are checked again all
the same, and without exactness nothing is kept. The rest of the benchmark runs with what was found.
"""

from functools import partial
from itertools import product
from time import perf_counter

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Part
from benchmarks.gpu.timing import copies_for, seconds
from engine.model.exact_rows import uneven_counts
from engine.model.ops.cuda.tiles import CANDIDATES, Shape, Tile, TileTable
from engine.model.ops.cuda_ops import CudaLinear, CudaOps
from engine.worker.device_errors import is_device_broken

_SECONDS = 50.0  # after which no other weight is begun
_TOKENS = {"few": (1, 6), "some": (48,), "many": (512,)}  # of the calls that are timed


def measure(bench: Bench, part: Part) -> None:
    """Time the candidates, the most used classes first, as far as the time goes."""
    own = {
        model.shape.name: (model, model.ops)
        for model in (bench.big, bench.small)
        if isinstance(model.ops, CudaOps)
    }
    if not own:
        part.add("tiles", "left out: not our kernels")
        return
    deadline = perf_counter() + _SECONDS
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
    if bench.is_cuda:
        part.add("table", str(bench.tiles))
        found.write(torch.cuda.get_device_name(bench.device), bench.tiles)


def _best(
    bench: Bench, ops: CudaOps, shape: Shape, kind: str, *, is_gated: bool
) -> tuple[Tile, float]:
    """The fastest candidate, and the time of the default tile over its time."""
    default = getattr(TileTable().tiles(shape), kind)
    copies = 1 if bench.is_quick else copies_for(shape[0] * shape[1] * ops.dtype.itemsize)
    weights = [
        ops.pack(torch.randn(*shape, device=bench.device, dtype=ops.dtype)) for _ in range(copies)
    ]
    before, times = ops.tiles, {}
    for tile in dict.fromkeys((default, *CANDIDATES[kind])):
        ops.tiles = TileTable()
        ops.tiles.put(shape, kind, tile)
        try:
            times[tile] = _time(bench, ops, weights, kind, is_gated=is_gated)
        except Exception as error:  # it may want more registers or memory than there are
            if is_device_broken(error):
                raise
            print(f"  {tile}: {error}".splitlines()[0], flush=True)
        finally:
            ops.tiles = before
    best = min(times, key=lambda tile: times[tile])
    return best, times[default] / times[best] if default in times else 1.0


@torch.inference_mode()
def _time(
    bench: Bench, ops: CudaOps, weights: list[CudaLinear], kind: str, *, is_gated: bool
) -> float:
    """Of one call, for every number of tokens that stands for the class."""
    total = 0.0
    for count in _TOKENS[kind]:
        x = torch.randn(count, weights[0].in_features, device=bench.device, dtype=ops.dtype)
        if is_gated:
            norm = torch.ones_like(x[0])
            calls = [partial(ops.gate_up, x, w, norm=norm, eps=1e-5) for w in weights]
        else:
            calls = [partial(ops.linear, x, w) for w in weights]
        total += seconds(calls, bench.device)
    return total


def _text(tile: Tile) -> str:
    cut = f"{tile.rows}x{tile.columns}x{tile.inner}"
    return f"{cut}, {tile.num_warps} warps, {tile.num_stages} stages"
