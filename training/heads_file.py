"""Writes heads.safetensors and heads.json, which `engine.model.exit_head` loads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.exit_head import format_version
from training.evaluate import HeadFigures
from training.generations import Generation, num_output_tokens
from training.head_module import HeadModule
from training.json_file import read_json, write_json
from training.tensor_file import write_tensors

Facts = dict[str, Any]


def write_heads(
    directory: Path,
    heads: Mapping[int, HeadModule],
    figures: Mapping[int, HeadFigures],
    token_ids: Tensor,
    facts: Facts,
) -> None:
    """Write a directory of heads.

    Args:
        heads: Heads by exit layer.
        figures: Their figures, by exit layer.
        token_ids: [V'], the reduced vocabulary.
        facts: Further entries of `heads.json`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {"vocabulary": token_ids}
    for layer, head in heads.items():
        tensors |= head.tensors(layer)
    write_tensors(directory / "heads.safetensors", tensors)
    content = {
        "format_version": format_version(tensors),
        "exit_layers": sorted(heads),
        "refinement_sizes": {str(n): head.refinement_size for n, head in heads.items()},
        "calibration": {str(n): asdict(f.calibration) for n, f in figures.items()},
        "figures": {
            str(n): {k: v for k, v in asdict(f).items() if k != "calibration"}
            for n, f in figures.items()
        },
        "torch": torch.__version__,
        **facts,
    }
    write_json(directory / "heads.json", content)


def write_chosen(source: Path, exit_layers: Sequence[int], directory: Path, further: Facts) -> None:
    """Write the heads at some of a directory's exits into another directory.

    Args:
        further: Entries added to those of the source's `heads.json`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    prefixes = tuple(f"exits.{layer}." for layer in exit_layers)
    tensors = {
        name: tensor
        for name, tensor in load_file(str(source / "heads.safetensors")).items()
        if name == "vocabulary" or name.startswith(prefixes)
    }
    write_tensors(directory / "heads.safetensors", tensors)
    facts = read_facts(source)
    for name in ("calibration", "figures", "refinement_sizes"):
        by_layer = facts.get(name, {})
        facts[name] = {str(n): by_layer[str(n)] for n in exit_layers if str(n) in by_layer}
    facts |= {"exit_layers": sorted(exit_layers), "format_version": format_version(tensors)}
    write_json(directory / "heads.json", facts | further)


def read_vocabulary(directory: Path) -> Tensor:
    """Return the reduced vocabulary [V'] of the heads in a directory."""
    vocabulary: Tensor = load_file(str(directory / "heads.safetensors"))["vocabulary"]
    return vocabulary


def model_facts(name: str, decoder: Decoder) -> Facts:
    """Return what `heads.json` says of the model that heads belong to."""
    return {
        "model": name,
        "fingerprint": decoder.fingerprint,
        "hidden_size": decoder.spec.hidden_size,
    }


def data_facts(rows: Sequence[Generation]) -> Facts:
    """Return what `heads.json` says of the text that heads were trained on."""
    tasks = sorted({row.task for row in rows})
    return {
        "num_generations": len(rows),
        "num_tokens": num_output_tokens(rows),
        "tokens_by_task": {
            task: num_output_tokens([row for row in rows if row.task == task]) for task in tasks
        },
        "temperatures": sorted({row.temperature for row in rows}),
        "longest": max((len(row.output_ids) for row in rows), default=0),
    }


def read_facts(directory: Path) -> Facts:
    """Read `heads.json`.

    Raises:
        ValueError: if the directory has none, or it is damaged.
    """
    facts: Facts | None = read_json(directory / "heads.json")
    if facts is None:
        raise ValueError(f"{directory} has no heads.json")
    if not isinstance(facts, dict):
        raise ValueError(f"{directory / 'heads.json'} is not a JSON object")
    return facts
