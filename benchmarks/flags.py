"""Flags that several benchmarks share. Imports no torch."""

import argparse
from pathlib import Path
from urllib.parse import urlsplit

from training.flag_types import output_file, positive, temperature

_CLOCKS = {
    "wall": "wall: wall-clock time",
    "cpu": "cpu: the process's CPU time, for machines that do other work, with --threads 1",
}


def add_model_flags(parser: argparse.ArgumentParser, *, many_heads: bool = False) -> None:
    """Declare which model runs, and how it is computed."""
    add_model_flag(parser)
    parser.add_argument(
        "--heads",
        type=Path,
        metavar="DIR",
        action="append" if many_heads else "store",
        help="exit heads; repeat for several (the model's own)"
        if many_heads
        else "exit heads (the model's own)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="auto")
    parser.add_argument("--backend", choices=("auto", "native", "torch"), default="auto")
    parser.add_argument(
        "--quantization",
        choices=("auto", "none", "int8", "q4"),
        default="auto",
        help="CPU weights; auto: a GGUF file's own blocks (%(default)s)",
    )
    add_activation_flag(parser)
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (all cores)")


def add_model_flag(parser: argparse.ArgumentParser) -> None:
    """Declare which model runs."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="smollm2-135m-instruct",
        help="local directory, .gguf file, hub id or built-in alias (%(default)s)",
    )


def add_activation_flag(parser: argparse.ArgumentParser) -> None:
    """Declare whether activations are rounded."""
    parser.add_argument(
        "--activation-quantization",
        choices=("none", "int8"),
        default="none",
        help="int8: round what quantized weights are multiplied with (%(default)s)",
    )


def add_prompt_set_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the prompts."""
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSON lines with task and prompt (built in)"
    )
    parser.add_argument(
        "--num-prompts", type=positive, metavar="N", help="at most N of each task (all)"
    )


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the prompts, and how much is generated for each."""
    add_prompt_set_flags(parser)
    parser.add_argument(
        "--max-tokens", type=positive, default=128, metavar="N", help="per prompt (%(default)s)"
    )


def add_clock_flags(parser: argparse.ArgumentParser, default: str = "wall") -> None:
    """Declare the flags of commands that can run on a modelled clock."""
    modelled = (
        "modelled: what the parts of steps cost, measured at the start and then held fixed, "
        "whatever else the machine does; says nothing about long contexts"
    )
    parser.add_argument(
        "--clock",
        choices=(*_CLOCKS, "modelled"),
        default=default,
        help=f"{'; '.join((*_CLOCKS.values(), modelled))} (%(default)s)",
    )
    parser.add_argument(
        "--costs",
        type=output_file,
        metavar="FILE",
        help="the modelled clock's costs, to repeat a run exactly: read from FILE; those it lacks "
        "are measured and written there (measured anew)",
    )


def add_group_flags(parser: argparse.ArgumentParser, default: tuple[int, ...]) -> None:
    """Declare how many prompts run at once."""
    parser.add_argument(
        "--concurrency",
        type=_concurrencies,
        default=default,
        metavar="N,N",
        help=f"prompts at once ({','.join(map(str, default))})",
    )
    parser.add_argument(
        "--group-by",
        choices=("task", "order"),
        help="task: prompts that run at once are of one task, so that every task has its figures; "
        "order: in the given order, tasks taking turns (by task where each has enough prompts)",
    )
    parser.add_argument(
        "--continuous",
        action="store_true",
        help="start the next prompt as soon as one ends, as in a server under load (a group runs "
        "to its end before the next begins)",
    )


def _concurrencies(text: str) -> tuple[int, ...]:
    return tuple(sorted({positive(part) for part in text.split(",")}))


def add_temperatures_flag(parser: argparse.ArgumentParser) -> None:
    """Declare several temperatures, which are run one after the other."""
    parser.add_argument(
        "--temperatures", type=_temperatures, default=(0.0, 0.8), metavar="T,T", help="(0,0.8)"
    )


def _temperatures(text: str) -> tuple[float, ...]:
    return tuple(temperature(part) for part in text.split(","))


def server_address(text: str) -> str:
    """Parse the address of a running server, which may end with /v1 as clients write it."""
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        is_address = False
    if not is_address:
        raise argparse.ArgumentTypeError("should be like http://127.0.0.1:8000")
    return text.rstrip("/").removesuffix("/v1")
