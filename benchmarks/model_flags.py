"""What the model's flags ask of an engine: one reading for every benchmark that has them."""

import argparse
from pathlib import Path

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
