"""Trains the heads of one `heads train` run, all on the same text and with the same options."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.model.decoder import Decoder
from training import gpu
from training.collect import ShardPaths, collect, collect_held, held_bytes
from training.evaluate import HeadFigures, evaluate_head
from training.generate import GenerationOptions
from training.generations import Generation
from training.head_factory import HeadFactory
from training.head_module import HeadModule
from training.heads_file import read_facts
from training.states import ROWS_PER_SHARD, StateSource
from training.threads import torch_threads
from training.train_head import TrainingConfig

logger = logging.getLogger(__name__)

_CARRIED_SHARDS = 16  # enough states to fit how a head is carried over to another layer


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadTraining:
    """The training of a run's heads, with the settings and the text that they share."""

    decoder: Decoder
    factory: HeadFactory
    rows: Sequence[Generation]  # to train on
    held_out: ShardPaths  # the states that heads are measured on
    generation: GenerationOptions
    config: TrainingConfig
    start_from: Path | None  # heads to train further; None: train from scratch

    def run(self, layers: Sequence[int]) -> dict[int, tuple[HeadModule, HeadFigures]]:
        """Return a trained head and its figures per exit layer; training resumes checkpoints."""
        return {
            layer: self._trained(layer, states)
            for sources in self._sources(layers)
            for layer, states in sources.items()
        }

    def _trained(self, layer: int, states: StateSource) -> tuple[HeadModule, HeadFigures]:
        work, start = self.generation.work, self._start(layer)
        with torch_threads(self.generation.model):
            head = self.factory.trained(f"head-{layer}", states, self.config, work, start)
            held_out = self.factory.shards(self.held_out, layer)
            figures = evaluate_head(head, held_out, self.factory.token_ids)
        logger.info("exit %d: %s", layer, figures.summary())
        return head, figures

    def _start(self, layer: int) -> tuple[str, HeadModule] | None:
        """Return the head to start from and the name of its origin, or None to start from scratch.

        Without a head at this layer, that of the nearest layer is carried over.
        """
        if self.start_from is None:
            return None
        layers: list[int] = read_facts(self.start_from)["exit_layers"]
        source = min(layers, key=lambda each: abs(each - layer))
        origin = f"{_digest(self.start_from / 'heads.safetensors')} at {source}"
        if source == layer:
            return origin, self.factory.loaded(self.start_from, layer)
        some = self.rows[: _CARRIED_SHARDS * ROWS_PER_SHARD]
        paths = collect(self.decoder, some, sorted([source, layer]), self.generation.states)
        here, there = self.factory.shards(paths, layer), self.factory.shards(paths, source)
        return origin, self.factory.carried(self.start_from, source, there, here)

    def _sources(self, layers: Sequence[int]) -> Iterator[dict[int, StateSource]]:
        """Yield the states to train on, by exit layer.

        They are read from disk, or on a GPU computed for as many exits at a time as its memory
        holds: there a pass over all text takes seconds, less than reading the states would.
        """
        per_part = held_bytes(self.decoder, self.rows, 0)
        num_exits = self.generation.max_bytes // per_part - 1
        if not gpu.is_used(self.decoder) or num_exits < 1:
            paths = collect(self.decoder, self.rows, layers, self.generation.states)
            yield {layer: self.factory.shards(paths, layer) for layer in layers}
            return
        for start in range(0, len(layers), num_exits):
            some = layers[start : start + num_exits]
            held = collect_held(self.decoder, self.rows, some)
            yield {layer: held.at(layer) for layer in some}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
