"""The `adadecode heads` command: train, measure, choose and show exit heads.

It also runs as `python -m training.cli` where the server's dependencies are not installed.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Literal

import torch

from engine.checkpoint import find_heads, resolve_model
from engine.config import ModelConfig
from engine.errors import EngineError
from engine.model.block_weight import BLOCK
from engine.model.spec import ModelSpec
from training import flags
from training.engines import MODELLED
from training.generate import GenerationOptions
from training.heads_file import read_facts
from training.pipeline import TrainOptions, choose_exits, evaluate, train
from training.prompts import Prompt, code_prompts, read_prompts, shuffled
from training.search import SearchOptions
from training.timing import Timekeeping
from training.train_head import TrainingConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands of `heads`."""
    commands = parser.add_subparsers(dest="heads_command", metavar="COMMAND", required=True)
    for name, add_flags, text in (
        ("train", flags.add_train_flags, "train exit heads for a model"),
        ("eval", flags.add_eval_flags, "measure trained heads on other prompts"),
        (
            "search",
            flags.add_search_flags,
            "choose the fastest exits on this machine among trained heads",
        ),
        ("show", flags.add_show_flags, "what trained heads are for and how good they are"),
    ):
        command = commands.add_parser(name, help=text, epilog="Defaults are in parentheses.")
        add_flags(command)


def run(args: argparse.Namespace) -> int:
    """Carry out a parsed `heads` command and return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = {"train": _train, "eval": _evaluate, "search": _choose, "show": _show}
    try:
        return commands[args.heads_command](args)
    except BrokenPipeError:  # the `adadecode` command knows what to do
        raise
    except (EngineError, OSError, ValueError) as error:
        print(f"adadecode heads {args.heads_command}: {error}", file=sys.stderr)
        return 1


def _show(args: argparse.Namespace) -> int:
    print(json.dumps(read_facts(args.heads), indent=2))
    return 0


def _train(args: argparse.Namespace) -> int:
    directory = resolve_model(args.model)
    output = args.output or directory / "exit_heads"
    _check_writable("--output", output)
    size = _vocabulary_size(args)
    search = _search_options(args, size)
    _check_refinement(args)
    if args.start_from is not None and args.no_previous_token:
        raise ValueError("--no-previous-token needs heads trained anew: leave out --start-from")
    options = TrainOptions(
        name=args.model,
        output=output,
        exit_layers=[] if search is not None else _exit_layers(args, directory),
        vocabulary_size=size,
        search=search,
        training=_training_config(args),
        start_from=args.start_from,
        has_report=not args.no_report,
    )
    train(_generation_options(args, directory, output / "work"), options, _prompts(args))
    print(f"exit heads written to {output}")
    return 0


def _training_config(args: argparse.Namespace) -> TrainingConfig:
    """Return the training options, with larger batches on a GPU by default.

    The learning rate grows with the square root of the batch size: the gradient of a larger batch
    has less noise.
    """
    batch_tokens: int = args.batch_tokens or (4096 if _is_on_gpu(args) else 512)
    rate: float | None = args.learning_rate
    return TrainingConfig(
        epochs=args.epochs,
        batch_tokens=batch_tokens,
        learning_rate=1e-3 * (batch_tokens / 512) ** 0.5 if rate is None else rate,
        reads_previous=not args.no_previous_token,
        refinement_size=args.refine,
    )


def _evaluate(args: argparse.Namespace) -> int:
    directory = resolve_model(args.model)
    heads = args.heads or find_heads(args.model, directory)
    if heads is None:
        raise ValueError(f"no exit heads for {args.model}: give --heads")
    with tempfile.TemporaryDirectory() as scratch:
        generation = _generation_options(args, directory, Path(scratch))
        for layer, figures in evaluate(generation, heads, _prompts(args)).items():
            print(f"exit {layer}: {figures.summary()}")
    return 0


def _choose(args: argparse.Namespace) -> int:
    _check_writable("--output", args.output)
    if args.output.resolve() == args.heads.resolve():
        raise ValueError("--output should differ from --heads, whose heads would be lost")
    directory = resolve_model(args.model)
    generation = _generation_options(
        args, directory, args.output / "work", quantization=args.quantization
    )
    found = choose_exits(
        generation, args.heads, args.output, args.candidates, _timekeeping(args), _prompts(args)
    )
    for name, text in found.rule.items():
        print(f"{name}: {text}")
    for each in found.exits:
        parts = [f"{x:.3f} at T = {t}" for t, x in each.measured_by_temperature.items()]
        details = ", ".join((*parts, f"forecast {each.forecast:.2f}"))
        print(f"exits {each.exit_layers}: {each.measured:.3f}x ({details})")
    print(f"exits {found.exits[0].exit_layers} written to {args.output}")
    return 0


def _generation_options(
    args: argparse.Namespace,
    directory: Path,
    default_work: Path,
    *,
    quantization: Literal["auto", "none", "int8", "q4"] = "none",
) -> GenerationOptions:
    if args.work is not None:
        _check_writable("--work", args.work)
    return GenerationOptions(
        model=ModelConfig(
            directory=directory,
            device=args.device,
            dtype=args.dtype,
            quantization=quantization,
            num_threads=args.threads,
        ),
        work=args.work or default_work,
        is_shared=args.work is None,
        num_tokens=args.tokens,
        max_new_tokens=args.max_new_tokens,
        max_bytes=_memory_bytes(args),
    )


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    prompts = _read_prompts(args.prompts) if args.prompts else []
    if not args.no_code_prompts:
        prompts += code_prompts()
    if not prompts:
        raise ValueError("no prompts: give --prompts, or leave out --no-code-prompts")
    return shuffled(prompts)


def _read_prompts(path: Path) -> list[Prompt]:
    try:
        return read_prompts(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--prompts: {path} cannot be read: {error}") from error


def _check_writable(flag: str, directory: Path) -> None:
    """Refuse a directory that cannot be written to, before hours of work."""
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"{flag}: {nearest} is not a directory")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{flag}: {nearest} cannot be written to")


def _exit_layers(args: argparse.Namespace, directory: Path) -> list[int]:
    """Return the layers asked for, those of `--start-from`, or one at a tenth of the depth."""
    num_layers = ModelSpec.from_directory(directory).num_layers
    layers: list[int] | None = args.exit_layers
    if layers is None:
        if args.start_from is not None:
            return list(read_facts(args.start_from)["exit_layers"])
        return [max(1, num_layers // 10)]
    if layers[-1] >= num_layers:
        raise ValueError(f"--exit-layers: between 0 and {num_layers - 1}, got {layers[-1]}")
    return layers


def _is_on_gpu(args: argparse.Namespace) -> bool:
    return torch.cuda.is_available() and args.device in ("auto", "cuda")


def _check_refinement(args: argparse.Namespace) -> None:
    """Refuse a refinement size that heads to start from cannot take.

    Linear heads can be given a refinement; heads that have one keep its size.
    """
    if args.refine % BLOCK:
        raise ValueError(f"--refine: 0, or a multiple of {BLOCK}, got {args.refine}")
    if args.refine and args.start_from is not None:
        sizes = read_facts(args.start_from).get("refinement_sizes", {}).values()
        if any(size not in (0, args.refine) for size in sizes):
            raise ValueError(f"--refine {args.refine}: heads to start from have {list(sizes)}")


def _memory_bytes(args: argparse.Namespace) -> int:
    gib: float | None = args.memory_gib
    if gib is None:
        gib = torch.cuda.mem_get_info()[1] / 2**31 if _is_on_gpu(args) else 2.0
    return int(gib * 2**30)


def _vocabulary_size(args: argparse.Namespace) -> int | None:
    """Return the size asked for; None if it is searched for or that of `--start-from`."""
    if args.vocabulary_size is None and args.start_from is not None:
        return None
    text = args.vocabulary_size or ("auto" if args.search else "4096")
    if text == "auto":
        if not args.search:
            raise ValueError("--vocabulary-size auto needs --search")
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"--vocabulary-size: a number or auto, got {text}")
    return int(text)


def _search_options(args: argparse.Namespace, vocabulary_size: int | None) -> SearchOptions | None:
    if not args.search:
        if args.clock is not None or args.costs is not None:
            raise ValueError("--clock and --costs need --search")
        return None
    if args.exit_layers is not None:
        raise ValueError("--search finds the exit layers: leave out --exit-layers")
    if args.start_from is not None:
        raise ValueError("--start-from needs the exit layers of those heads, not --search")
    return SearchOptions(
        num_tokens=args.search_tokens,
        num_candidates=args.candidates,
        vocabulary_size=vocabulary_size,
        refinement_size=args.refine,
        timekeeping=_timekeeping(args),
    )


def _timekeeping(args: argparse.Namespace) -> Timekeeping:
    clock = args.clock or MODELLED
    if args.costs is not None and clock != MODELLED:
        raise ValueError(f"--costs: only --clock {MODELLED} uses them")
    return Timekeeping(clock=clock, costs=args.costs)


def main() -> int:
    """Entry point of `python -m training.cli`."""
    parser = argparse.ArgumentParser(prog="adadecode heads")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
