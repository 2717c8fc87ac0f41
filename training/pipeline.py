"""`adadecode heads train`: the model's own output → hidden states → heads → figures → files. Every
stage resumes.

work directory:  generations.jsonl → hidden/shard-*.safetensors → head-<layer>.safetensors
output:          heads.safetensors, heads.json
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.config import EngineConfig, ModelConfig
from engine.model.decoder import Decoder
from engine.model.exit_head import FORMAT_VERSION
from engine.model.spec import ModelSpec
from engine.worker.worker import select_ops
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """What `heads train` was asked for."""

    model: ModelConfig
    name: str  # the model as the user named it
    output: Path
    work: Path
    exit_layers: Sequence[int]
    num_tokens: int  # self-generated tokens to train on
    max_new_tokens: int
    vocabulary_size: int
    max_bytes: int  # of hidden states in memory at once
    training: TrainingConfig


def train(options: TrainOptions, prompts: Sequence[Prompt]) -> dict[int, HeadFigures]:
    """Run all stages that are not done yet; returns the figures by exit layer."""
    options.work.mkdir(parents=True, exist_ok=True)
    generations = options.work / "generations.jsonl"
    generate(options.model, prompts, generations, options.num_tokens, options.max_new_tokens)
    rows = read_generations(generations)
    decoder = _load_decoder(options.model)
    training, held_out = split_held_out(rows, _HELD_OUT_SHARE)
    paths = _collect(decoder, training, options, "hidden")
    held_out_paths = _collect(decoder, held_out, options, "held-out")
    ids, covered = reduced_vocabulary(training, options.vocabulary_size)
    token_ids = torch.tensor(ids, dtype=torch.int32)
    lm_head = (decoder.lm_head_rows(token_ids.to(decoder.ops.device)) * decoder.final_norm).float()
    figures: dict[int, HeadFigures] = {}
    tensors: dict[str, Tensor] = {"vocabulary": token_ids}
    for layer in options.exit_layers:
        head = _trained_head(layer, paths, lm_head, options)
        shards = Shards(held_out_paths, layer, options.max_bytes)
        figures[layer] = evaluate_head(head, shards, token_ids)
        tensors |= head.tensors(layer)
        logger.info("exit %d: %s", layer, _summary(figures[layer]))
    facts = _facts(decoder, options, figures, training)
    facts["vocabulary"] = {"size": len(ids), "coverage": round(covered, 4)}
    _write(options.output, tensors, facts)
    return figures


def _load_decoder(model: ModelConfig) -> Decoder:
    spec = ModelSpec.from_directory(model.directory)
    return Decoder.load(model.directory, select_ops(EngineConfig(model=model), spec))


def _collect(
    decoder: Decoder, rows: Sequence[Generation], options: TrainOptions, name: str
) -> list[Path]:
    with ProgressReport(f"hidden states ({name})", len(rows), "sequences") as report:
        return collect(
            decoder,
            rows,
            options.exit_layers,
            options.work / name,
            progress=lambda done, _: report.update(done),
        )


def _trained_head(
    layer: int, paths: Sequence[Path], lm_head: Tensor, options: TrainOptions
) -> HeadModule:
    """A head from its checkpoint, or trained now."""
    shards = Shards(paths, layer, options.max_bytes)
    sample = next(shards.groups())
    device = lm_head.device
    torch.manual_seed(options.training.seed)
    head = HeadModule(
        feature_scale(sample.exit[:65536]).to(device),
        feature_scale(sample.last[:65536]).to(device),
        lm_head,
    ).to(device)
    checkpoint = options.work / f"head-{layer}.safetensors"
    if checkpoint.exists():
        head.load_state_dict(load_file(str(checkpoint)), strict=False)
        return head
    with ProgressReport(f"exit head {layer}", 0, "steps") as report:

        def on_step(done: int, total: int, loss: float) -> None:
            report.total = total
            report.update(done, f"loss {loss:.3f}")

        train_head(head, shards, options.training, on_step=on_step)
    state = {k: v for k, v in head.state_dict().items() if k != "lm_head"}
    save_file(state, str(checkpoint))
    return head


def _summary(figures: HeadFigures) -> str:
    return (
        f"agreement {figures.agreement:.3f}, by draft {figures.agreement_by_draft}, "
        f"confident {figures.confident_share:.2f} right {figures.confident_agreement:.3f}"
    )


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
