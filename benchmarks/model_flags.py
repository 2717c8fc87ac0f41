"""What the model's flags ask for: one reading for every benchmark that has them."""

import argparse
from pathlib import Path

from engine.checkpoint import find_heads
from engine.config import ModelConfig


def model_config(args: argparse.Namespace, directory: Path) -> ModelConfig:
    """The model in a directory, with the device, numbers and threads of the parsed flags."""
    return ModelConfig(
        directory=directory,
        device=args.device,
        dtype=args.dtype,
        num_threads=args.threads,
        backend=args.backend,
        quantization=args.quantization,
    )


def required_heads(args: argparse.Namespace, directory: Path) -> Path:
    """The exit heads asked for, or the model's own.

    Raises:
        ValueError: when it has none.
    """
    heads: Path | None = args.heads or find_heads(args.model, directory)
    if heads is None:
        raise ValueError(f"no exit heads for {args.model}: give --heads")
    return heads
