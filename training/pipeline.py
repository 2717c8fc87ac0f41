"""`adadecode heads train`: the model's own output → hidden states → heads → figures → files. Every
stage resumes.

work directory:  generations.jsonl → hidden/shard-*.safetensors → head-<layer>.safetensors
output:          heads.safetensors, heads.json
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.config import EngineConfig, ModelConfig
from engine.model.decoder import Decoder
from engine.model.exit_head import FORMAT_VERSION, load_heads
from engine.model.spec import ModelSpec
from engine.worker.backend import select_ops
from training.collect import Shards, collect
from training.evaluate import HeadFigures, evaluate_head
from training.generate import generate
from training.generations import (
    Generation,
    num_output_tokens,
    read_generations,
    reduced_vocabulary,
    split_held_out,
)
from training.head_module import HeadModule, feature_scale
from training.progress import ProgressReport
from training.prompts import Prompt
from training.train_head import TrainingConfig, train_head

logger = logging.getLogger(__name__)

_HELD_OUT_SHARE = 0.04
_SCALE_SAMPLE = 65536  # positions that feature scales are measured on


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What is generated and collected, and where."""

    model: ModelConfig
    work: Path
    num_tokens: int  # self-generated
    max_new_tokens: int  # per prompt
    max_bytes: int  # of hidden states in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Which heads are trained from it."""

    name: str  # the model as the user named it
    output: Path
    exit_layers: Sequence[int]
    vocabulary_size: int
    training: TrainingConfig


def train(
    generation: GenerationOptions, options: TrainOptions, prompts: Sequence[Prompt]
) -> dict[int, HeadFigures]:
    """Run all stages that are not done yet; returns the figures by exit layer."""
    rows = _generated(generation, prompts)
    decoder = _load_decoder(generation.model)
    training, held_out = split_held_out(rows, _HELD_OUT_SHARE)
    layers, work = options.exit_layers, generation.work
    paths = _collect(decoder, training, layers, work / "hidden")
    held_out_paths = _collect(decoder, held_out, layers, work / "held-out")
    ids, covered = reduced_vocabulary(training, options.vocabulary_size)
    token_ids = torch.tensor(ids, dtype=torch.int32)
    lm_head = _lm_head(decoder, token_ids)
    figures: dict[int, HeadFigures] = {}
    tensors: dict[str, Tensor] = {"vocabulary": token_ids}
    for layer in layers:
        shards = Shards(paths, layer, generation.max_bytes)
        head = _trained_head(work / f"head-{layer}.safetensors", shards, lm_head, options.training)
        held_out_shards = Shards(held_out_paths, layer, generation.max_bytes)
        figures[layer] = evaluate_head(head, held_out_shards, token_ids)
        tensors |= head.tensors(layer)
        logger.info("exit %d: %s", layer, figures[layer].summary())
    facts = _facts(decoder, options, figures, training)
    facts["vocabulary"] = {"size": len(ids), "coverage": round(covered, 4)}
    _write(options.output, tensors, facts)
    return figures


def evaluate(
    generation: GenerationOptions, heads: Path, prompts: Sequence[Prompt]
) -> dict[int, HeadFigures]:
    """Figures of trained heads on what the model answers to these prompts.

    Raises:
        HeadsMismatch: if the heads belong to other weights.
    """
    decoder = _load_decoder(generation.model)
    exit_layers = load_heads(heads, decoder).exit_layers
    rows = _generated(generation, prompts)
    paths = _collect(decoder, rows, exit_layers, generation.work / "hidden")
    tensors = load_file(str(heads / "heads.safetensors"))
    token_ids = tensors["vocabulary"]
    lm_head = _lm_head(decoder, token_ids)
    return {
        layer: evaluate_head(
            HeadModule.from_tensors(tensors, layer, lm_head),
            Shards(paths, layer, generation.max_bytes),
            token_ids,
        )
        for layer in exit_layers
    }


def _generated(options: GenerationOptions, prompts: Sequence[Prompt]) -> list[Generation]:
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / "generations.jsonl"
    generate(options.model, prompts, path, options.num_tokens, options.max_new_tokens)
    return read_generations(path)


def _lm_head(decoder: Decoder, token_ids: Tensor) -> Tensor:
    """The LM head's rows [V', E] with the final norm's weight folded in."""
    rows = decoder.lm_head_rows(token_ids.to(decoder.ops.device))
    return (rows * decoder.final_norm).float()


def _load_decoder(model: ModelConfig) -> Decoder:
    torch.set_num_threads(model.num_threads or os.cpu_count() or 1)
    spec = ModelSpec.from_directory(model.directory)
    return Decoder.load(model.directory, select_ops(EngineConfig(model=model), spec))


def _collect(
    decoder: Decoder, rows: Sequence[Generation], exit_layers: Sequence[int], directory: Path
) -> list[Path]:
    with ProgressReport(f"hidden states ({directory.name})", len(rows), "sequences") as report:
        return collect(
            decoder,
            rows,
            exit_layers,
            directory,
            progress=lambda done, _: report.update(done),
        )


def _trained_head(
    checkpoint: Path, shards: Shards, lm_head: Tensor, config: TrainingConfig
) -> HeadModule:
    """A head from its checkpoint, or trained now."""
    sample = next(shards.groups())
    device = lm_head.device
    head = HeadModule(
        feature_scale(sample.exit[:_SCALE_SAMPLE]).to(device),
        feature_scale(sample.last[:_SCALE_SAMPLE]).to(device),
        lm_head,
    ).to(device)
    if checkpoint.exists():
        head.load_state_dict(load_file(str(checkpoint)), strict=False)
        return head
    with ProgressReport(checkpoint.stem, 0, "steps") as report:

        def on_step(done: int, total: int, loss: float) -> None:
            report.total = total
            report.update(done, f"loss {loss:.3f}")

        train_head(head, shards, config, on_step=on_step)
    save_file({k: v for k, v in head.state_dict().items() if k != "lm_head"}, str(checkpoint))
    return head


def _facts(
    decoder: Decoder,
    options: TrainOptions,
    figures: dict[int, HeadFigures],
    rows: Sequence[Generation],
) -> dict[str, object]:
    """What `heads.json` says: what the heads are for, what they saw, how good they are."""
    tasks = sorted({row.task for row in rows})
    return {
        "format_version": FORMAT_VERSION,
        "model": options.name,
        "fingerprint": decoder.fingerprint,
        "hidden_size": decoder.spec.hidden_size,
        "exit_layers": list(options.exit_layers),
        "calibration": {str(n): asdict(f.calibration) for n, f in figures.items()},
        "training": {
            "num_generations": len(rows),
            "num_tokens": num_output_tokens(rows),
            "tokens_by_task": {
                task: num_output_tokens([row for row in rows if row.task == task]) for task in tasks
            },
            "temperatures": sorted({row.temperature for row in rows}),
            **asdict(options.training),
        },
        "figures": {
            str(n): {k: v for k, v in asdict(f).items() if k != "calibration"}
            for n, f in figures.items()
        },
        "torch": torch.__version__,
    }


def _write(output: Path, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    cpu = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    save_file(cpu, str(output / "heads.safetensors"))
    (output / "heads.json").write_text(json.dumps(facts, indent=2) + "\n")
