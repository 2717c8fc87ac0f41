"""Measures what the parts of a step cost on this machine, so that any choice of exits has a cost.

Timed are the first layer, all further layers together, the LM head, and one exit head for each size
of the reduced vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHeads, build_heads
from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from engine.worker.cost_profile import Profiler, Seconds
from engine.worker.cuda_graph import CudaCapture
from engine.worker.decode_step import split_layers
from engine.worker.graph_runner import BatchLimits, GraphRunner
from engine.worker.kv_cache import allocate_cache
from engine.worker.segment_runner import EagerRunner, SegmentRunner
from training.head_module import HeadModule
from training.json_file import read_json, write_json

_BLOCK_SIZE = 16
_SPLIT = [1]  # one exit after the first layer: a segment of one layer, and one of all others


@dataclass(frozen=True, slots=True)
class PartCosts:
    """The seconds that each part of a step takes, by number of tokens."""

    num_layers: int
    layer: Mapping[int, float]  # a segment of one layer, with the fixed cost of a call
    further_layer: Mapping[int, float]  # each layer after the first of a segment
    logits: Mapping[int, float]
    heads: Mapping[int, Mapping[int, float]]  # size of the reduced vocabulary -> one exit head

    def model(self, exit_layers: Sequence[int], vocabulary_size: int) -> CostModel:
        """Return the cost model of a choice of exits, with heads of a size that was measured."""
        segments = split_layers(self.num_layers, exit_layers)
        heads = [CostCurve.of(self.heads[vocabulary_size])] * len(exit_layers)
        curves = [self._segment(segment.num_layers) for segment in segments]
        return CostModel(curves, heads, CostCurve.of(self.logits))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "PartCosts":
        """Build from parsed JSON, whose keys are strings."""
        return cls(
            num_layers=raw["num_layers"],
            layer=_counts(raw["layer"]),
            further_layer=_counts(raw["further_layer"]),
            logits=_counts(raw["logits"]),
            heads={int(size): _counts(times) for size, times in raw["heads"].items()},
        )

    def _segment(self, num_layers: int) -> CostCurve:
        if num_layers == 0:
            return CostCurve.of(dict.fromkeys(self.layer, 0.0))
        return CostCurve.of(
            {
                count: seconds + (num_layers - 1) * self.further_layer[count]
                for count, seconds in self.layer.items()
            }
        )


def measure_costs(
    decoder: Decoder, vocabulary_sizes: Sequence[int], refinement_size: int = 0
) -> PartCosts:
    """Time all parts, which takes some seconds.

    Args:
        refinement_size: Inner size of the timed heads' refinements; 0: linear heads.
    """
    runner = _runner(decoder)
    best: Seconds = {}
    heads: dict[int, dict[int, float]] = {}
    for size in vocabulary_sizes:
        exits = _random_heads(decoder, size, refinement_size)
        if isinstance(runner, GraphRunner):
            exits = runner.heads(exits)
        seconds, _ = Profiler(runner, len(_SPLIT) + 1, exits, _BLOCK_SIZE, decoder.ops).measure()
        heads[size] = seconds.pop("head 0")
        for part, times in seconds.items():
            mine = best.setdefault(part, dict(times))
            for count, value in times.items():
                mine[count] = min(value, mine.get(count, value))
    num_layers = decoder.spec.num_layers
    one, rest = best["segment 0"], best["segment 1"]
    num_further = max(1, num_layers - 2)
    further = {count: max(0.0, (rest[count] - one[count]) / num_further) for count in one}
    return PartCosts(num_layers, one, further, best["logits"], heads)


def kept_costs(
    path: Path, decoder: Decoder, vocabulary_sizes: Sequence[int], refinement_size: int
) -> PartCosts:
    """Read the costs from a file, or measure and write them if there is none.

    Forecasts of different runs must agree, so all of them use the same measurement.
    """
    raw = read_json(path)
    if raw is not None:
        return PartCosts.from_json(raw)
    costs = measure_costs(decoder, vocabulary_sizes, refinement_size)
    write_json(path, asdict(costs))
    return costs


def _runner(decoder: Decoder) -> SegmentRunner:
    """Return a runner of the same kind as a worker's, with one exit after the first layer."""
    segments = split_layers(decoder.spec.num_layers, _SPLIT)
    ops = decoder.ops
    cache = allocate_cache(decoder.spec, 2, _BLOCK_SIZE, dtype=ops.dtype, device=ops.device)
    if ops.name != "cuda":
        return EagerRunner(decoder, segments, cache)
    limits = BatchLimits(
        max_rows=1, max_positions=_BLOCK_SIZE, block_size=_BLOCK_SIZE, spare_slot=_BLOCK_SIZE
    )
    runner = GraphRunner(decoder, segments, cache, limits, CudaCapture())
    runner.prepare()
    return runner


def _random_heads(decoder: Decoder, size: int, refinement_size: int) -> ExitHeads:
    """Return one head of random weights, which costs what a trained one does."""
    width = decoder.spec.hidden_size
    head = HeadModule(torch.ones(width), torch.ones(width), torch.empty(0, width))
    if refinement_size:
        head.refine(refinement_size)
    tensors = {name: torch.randn(each.shape) for name, each in head.tensors(1).items()}
    token_ids = torch.arange(min(size, decoder.spec.vocab_size), dtype=torch.int32)
    return build_heads(decoder, token_ids, tensors, [1], {})


def _counts(times: Mapping[str, float]) -> dict[int, float]:
    return {int(count): seconds for count, seconds in times.items()}
