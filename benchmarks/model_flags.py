"""Interprets the model flags that several benchmarks share."""

import argparse
from pathlib import Path

from engine.checkpoint import find_heads
from engine.config import EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig


def model_config(args: argparse.Namespace, directory: Path) -> ModelConfig:
    """Return the configuration of a model, with device, dtype, threads and so on from the flags."""
    return ModelConfig(
        directory=directory,
        device=args.device,
        dtype=args.dtype,
        num_threads=args.threads,
        backend=args.backend,
        quantization=args.quantization,
        activation_quantization=args.activation_quantization,
    )


def drafting_config(
    args: argparse.Namespace, directory: Path, heads: Path, max_num_seqs: int
) -> EngineConfig:
    """Return the configuration of an engine in this process that drafts with these heads."""
    return EngineConfig(
        model=model_config(args, directory),
        scheduler=SchedulerConfig(max_num_seqs=max_num_seqs),
        exits=ExitsConfig(heads=heads),
        worker="inline",
    )


def required_heads(args: argparse.Namespace, directory: Path) -> Path:
    """Return the exit heads asked for, or the model's own.

    Raises:
        ValueError: if there are none.
    """
    heads: Path | None = args.heads or find_heads(args.model, directory)
    if heads is None:
        raise ValueError(f"no exit heads for {args.model}: give --heads")
    return heads
