"""`adadecode heads train`: the model's own output and its hidden states → heads → figures → files.
Every stage resumes.

work directory:  generations.jsonl, hidden/, held-out/ → head-<layer>-<what it was made of>.pt
output:          heads.safetensors, heads.json
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from engine.config import EngineConfig, ModelConfig
from engine.model.decoder import Decoder
from engine.model.exit_head import load_heads
from engine.model.spec import ModelSpec
from engine.worker.backend import limit_torch_threads, select_ops
from training.collect import ShardPaths, collect
from training.evaluate import HeadFigures, evaluate_head
from training.generate import GenerationOptions, generate
from training.generations import (
    Generation,
    read_generations,
    reduced_vocabulary,
    split_held_out,
)
from training.head_factory import HeadFactory
from training.head_module import HeadModule
from training.heads_file import data_facts, model_facts, read_facts, write_heads
from training.progress import ProgressReport
from training.prompts import Prompt
from training.train_head import TrainingConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Which heads are trained from it."""

    name: str  # the model as the user named it
    output: Path
    exit_layers: Sequence[int]
    vocabulary_size: int
    training: TrainingConfig
    start_from: Path | None = None  # heads to train further


def train(
    generation: GenerationOptions, options: TrainOptions, prompts: Sequence[Prompt]
) -> dict[int, HeadFigures]:
    """Run all stages that are not done yet; returns the figures by exit layer.

    Raises:
        EngineError: if the model cannot be run.
        ValueError: if the options do not fit together.
    """
    generate(generation, prompts, options.exit_layers)
    training, held_out = split_held_out(read_generations(generation.generations))
    decoder = load_decoder(generation.model)
    paths = _collect(decoder, training, options.exit_layers, generation.states)
    held_out_paths = _collect(decoder, held_out, options.exit_layers, generation.held_out_states)
    ids, covered = reduced_vocabulary(training, options.vocabulary_size)
    factory = HeadFactory(decoder, ids, generation.max_bytes)
    heads: dict[int, HeadModule] = {}
    figures: dict[int, HeadFigures] = {}
    torch.set_num_threads(generation.model.num_threads or os.cpu_count() or 1)
    for layer in options.exit_layers:
        start_from = None if options.start_from is None else (options.start_from, layer)
        shards = factory.shards(paths, layer)
        heads[layer] = factory.trained(
            f"head-{layer}", shards, options.training, generation.work, start_from
        )
        held_out_shards = factory.shards(held_out_paths, layer)
        figures[layer] = evaluate_head(heads[layer], held_out_shards, factory.token_ids)
        logger.info("exit %d: %s", layer, figures[layer].summary())
    facts = model_facts(options.name, decoder) | {
        "training": data_facts(training) | asdict(options.training),
        "vocabulary": {"size": len(ids), "coverage": round(covered, 4)},
    }
    if options.start_from is not None:
        facts["training"]["trained_further"] = read_facts(options.start_from)["training"]
    write_heads(options.output, heads, figures, factory.token_ids, facts)
    return figures


def evaluate(
    generation: GenerationOptions, heads: Path, prompts: Sequence[Prompt]
) -> dict[int, HeadFigures]:
    """Figures of trained heads on what the model answers to these prompts.

    Raises:
        HeadsMismatch: if the heads belong to other weights.
    """
    decoder = load_decoder(generation.model)
    exit_layers = load_heads(heads, decoder).exit_layers
    generate(generation, prompts, exit_layers)
    training, held_out = split_held_out(read_generations(generation.generations))
    paths = _collect(decoder, training, exit_layers, generation.states)
    paths += _collect(decoder, held_out, exit_layers, generation.held_out_states)
    token_ids = load_file(str(heads / "heads.safetensors"))["vocabulary"]
    factory = HeadFactory(decoder, token_ids.tolist(), generation.max_bytes)
    return {
        layer: evaluate_head(factory.loaded(heads, layer), factory.shards(paths, layer), token_ids)
        for layer in exit_layers
    }


def load_decoder(model: ModelConfig) -> Decoder:
    """The model on the configured device, in the numbers that it is served in."""
    config = EngineConfig(model=model)
    ops = select_ops(config, ModelSpec.from_directory(model.directory))
    limit_torch_threads(config, ops)
    return Decoder.load(model.directory, ops)


def _collect(
    decoder: Decoder, rows: Sequence[Generation], exit_layers: Sequence[int], directory: Path
) -> ShardPaths:
    with ProgressReport(f"hidden states ({directory.name})", len(rows), "sequences") as report:
        return collect(
            decoder,
            rows,
            exit_layers,
            directory,
            progress=lambda done, _: report.update(done),
        )
