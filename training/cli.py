"""`adadecode heads train` and `adadecode heads eval`: also `python -m training.cli`, where only
torch is installed.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from engine.config import ModelConfig
from engine.errors import EngineError
from training.pipeline import TrainOptions, train
from training.prompts import code_prompts, read_prompts, shuffled
from training.train_head import TrainingConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands of `heads`."""
    commands = parser.add_subparsers(dest="heads_command", required=True)
    train_parser = commands.add_parser("train", help="train exit heads for a model")
    _add_train_arguments(train_parser)
    show = commands.add_parser(
        "show", help="print what trained heads are for and how good they are"
    )
    show.add_argument("heads", type=Path, help="directory with heads.json")


def _add_train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="local directory, .gguf file, hub id or built-in alias")
    parser.add_argument("--prompts", type=Path, help="JSON lines with prompt and, optionally, task")
    parser.add_argument("--output", type=Path, help="default: <model directory>/exit_heads")
    parser.add_argument("--work", type=Path, help="resumable state; default: <output>/work")
    parser.add_argument("--exit-layers", help="comma-separated; default: spread over the depth")
    parser.add_argument(
        "--tokens", type=int, default=200_000, help="self-generated tokens (%(default)s)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=192, help="per prompt (%(default)s)")
    parser.add_argument("--vocabulary-size", type=int, default=4096, help="(%(default)s)")
    parser.add_argument("--epochs", type=int, default=6, help="(%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="(%(default)s)")
    parser.add_argument("--no-code-prompts", action="store_true", help="train on --prompts alone")
    parser.add_argument(
        "--memory-gib", type=float, default=2.0, help="hidden states held (%(default)s)"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto"
    )
    parser.add_argument("--threads", type=int)


def run(args: argparse.Namespace) -> int:
    """Carry out a parsed `heads` command; returns the exit status."""
    if args.heads_command == "show":
        print(json.dumps(json.loads((args.heads / "heads.json").read_text()), indent=2))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return _train(args)
    except (EngineError, ValueError) as error:
        print(f"adadecode heads train: {error}", file=sys.stderr)
        return 1


def _train(args: argparse.Namespace) -> int:
    from engine.checkpoint import resolve_model

    directory = resolve_model(args.model)
    output = args.output or directory / "exit_heads"
    prompts = read_prompts(args.prompts) if args.prompts else []
    if not args.no_code_prompts:
        prompts += code_prompts()
    if not prompts:
        raise ValueError("no prompts: give --prompts, or leave out --no-code-prompts")
    options = TrainOptions(
        model=ModelConfig(
            directory=directory, device=args.device, dtype=args.dtype, num_threads=args.threads
        ),
        name=args.model,
        output=output,
        work=args.work or output / "work",
        exit_layers=_exit_layers(args.exit_layers, directory),
        num_tokens=args.tokens,
        max_new_tokens=args.max_new_tokens,
        vocabulary_size=args.vocabulary_size,
        max_bytes=int(args.memory_gib * 2**30),
        training=TrainingConfig(epochs=args.epochs, learning_rate=args.learning_rate),
    )
    train(options, shuffled(prompts))
    print(f"exit heads written to {output}")
    return 0


def _exit_layers(text: str | None, directory: Path) -> list[int]:
    """The layers asked for, or a tenth and two thirds of the depth: one cheap exit, one sure
    one.
    """
    from engine.model.spec import ModelSpec

    num_layers = ModelSpec.from_directory(directory).num_layers
    if text is None:
        return sorted({max(1, num_layers // 10), max(1, num_layers * 2 // 3)})
    layers = sorted({int(part) for part in text.split(",")})
    if not all(0 < layer < num_layers for layer in layers):
        raise ValueError(f"--exit-layers: between 1 and {num_layers - 1}, got {text}")
    return layers


def main() -> int:
    """Entry point of `python -m training.cli`."""
    parser = argparse.ArgumentParser(prog="adadecode heads")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
