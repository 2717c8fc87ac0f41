"""The flags of each benchmark whose module imports torch: `bench --help` needs none."""

import argparse
from pathlib import Path

from benchmarks.comparison import MODES
from benchmarks.domains import DOMAINS
from benchmarks.flags import (
    add_activation_flag,
    add_clock_flags,
    add_group_flags,
    add_model_flag,
    add_model_flags,
    add_prompt_flags,
    add_prompt_set_flags,
    add_temperatures_flag,
)
from benchmarks.peer_files import PRECISIONS
from training.flag_types import count, output_file, positive, share, temperature


def add_latency_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bench latency`."""
    add_model_flags(parser)
    add_prompt_flags(parser)
    add_clock_flags(parser)
    parser.add_argument(
        "--temperature", type=temperature, default=0.0, help="(%(default)s: greedy)"
    )
    add_group_flags(parser, (1, 4, 8))
    parser.add_argument(
        "--modes",
        type=_modes,
        metavar="M,M",
        help=f"({','.join(MODES)}, those that the clock can time)",
    )
    parser.add_argument(
        "--threshold",
        type=share,
        metavar="P",
        help="fixed confidence threshold (cost-aware policy)",
    )
    parser.add_argument(
        "--max-draft-tokens", type=positive, default=15, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write every figure and run"
    )
    parser.add_argument(
        "--plot", type=output_file, metavar="FILE", help="write a bar chart (PNG, SVG)"
    )


def add_heads_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bench heads`."""
    add_model_flags(parser, many_heads=True)
    add_prompt_flags(parser)
    add_clock_flags(parser, default="modelled")
    add_group_flags(parser, (1,))
    parser.add_argument(
        "--temperature", type=temperature, default=0.0, help="(%(default)s: greedy)"
    )
    parser.add_argument("--no-lookup-drafts", action="store_true", help="heads alone draft")
    parser.add_argument(
        "--no-second-candidates", action="store_true", help="one candidate per draft position"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure")


def add_peers_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bench peers`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="smollm2-135m-instruct",
        help=".gguf file or built-in alias; any model without llama.cpp (%(default)s)",
    )
    parser.add_argument("--heads", type=Path, metavar="DIR", help="exit heads (the model's own)")
    add_activation_flag(parser)
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (all cores)")
    parser.add_argument(
        "--llama-bench",
        type=Path,
        metavar="FILE",
        help="llama.cpp's llama-bench, or none to leave llama.cpp out (the one on PATH)",
    )
    parser.add_argument(
        "--precisions",
        type=_precisions,
        default=PRECISIONS,
        metavar="P,P",
        help=f"({','.join(PRECISIONS)})",
    )
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--max-tokens", type=positive, default=96, metavar="N", help="tokens decoded (%(default)s)"
    )
    parser.add_argument(
        "--prompt-tokens", type=positive, default=256, metavar="N", help="(%(default)s)"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSON lines (built in)")
    parser.add_argument("--no-transformers", action="store_true", help="leave transformers out")
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write every figure and run"
    )
    parser.add_argument(
        "--plot", type=output_file, metavar="FILE", help="write a bar chart (PNG, SVG)"
    )


def add_lossless_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bench lossless`."""
    add_model_flags(parser)
    add_prompt_flags(parser)
    add_temperatures_flag(parser)
    parser.add_argument(
        "--ways",
        choices=("all", "heads"),
        default="all",
        help="heads: only the trained ones, alone and in batches, in minutes (%(default)s)",
    )


def add_ablation_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bench ablation`."""
    add_model_flags(parser)
    add_prompt_flags(parser)
    add_clock_flags(parser)
    add_group_flags(parser, (1,))
    parser.add_argument(
        "--temperature", type=temperature, default=0.0, help="(%(default)s: greedy)"
    )
    parser.add_argument(
        "--row",
        action="append",
        metavar="NAME",
        help="only this row of the table; repeat for several (all)",
    )
    parser.add_argument(
        "--retrained",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="heads trained for a row (`heads train --no-previous-token`, other --exit-layers): in "
        "place of the row of that name, or as one more",
    )
    parser.add_argument("--markdown", type=output_file, metavar="FILE", help="write the table")
    parser.add_argument(
        "--plot", type=output_file, metavar="FILE", help="write a picture (PNG, SVG)"
    )


def add_calibration_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bench calibration`."""
    add_model_flags(parser)
    add_prompt_flags(parser)
    add_temperatures_flag(parser)
    parser.add_argument(
        "--warm-up",
        type=count,
        default=500,
        metavar="N",
        help="tokens of traffic before measuring (%(default)s)",
    )


def add_rounding_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bench rounding`."""
    add_model_flag(parser)
    add_prompt_set_flags(parser)
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (all cores)")


def add_learning_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bench learn`."""
    add_model_flags(parser)
    parser.add_argument(
        "--domain",
        choices=tuple(DOMAINS),
        default="german",
        help="domain that the traffic changes to (%(default)s)",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="JSON lines with task and prompt, instead of --domain",
    )
    parser.add_argument(
        "--num-prompts",
        type=positive,
        default=40,
        metavar="N",
        help="prompts of the domain (%(default)s)",
    )
    parser.add_argument(
        "--familiar",
        type=count,
        default=6,
        metavar="N",
        help="familiar prompts before them (%(default)s)",
    )
    parser.add_argument(
        "--window", type=positive, default=8, metavar="N", help="prompts per row (%(default)s)"
    )
    parser.add_argument(
        "--share",
        type=share,
        default=0.1,
        help="share of the worker's time for learning (%(default)s)",
    )
    parser.add_argument("--no-lookup-drafts", action="store_true", help="heads alone draft")
    parser.add_argument(
        "--max-tokens", type=positive, default=96, metavar="N", help="per prompt (%(default)s)"
    )
    parser.add_argument(
        "--temperature", type=temperature, default=0.0, help="(%(default)s: greedy)"
    )
    parser.add_argument(
        "--plot", type=output_file, metavar="FILE", help="write a picture (PNG, SVG)"
    )
    add_clock_flags(parser)


def add_structured_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `bench structured`."""
    add_model_flags(parser)
    parser.add_argument("--num-schemas", type=positive, metavar="N", help="at most N (all)")
    parser.add_argument(
        "--skip-schemas",
        type=count,
        default=0,
        metavar="N",
        help="leave out the first N (%(default)s)",
    )
    parser.add_argument(
        "--num-seeds", type=positive, default=10, metavar="N", help="per schema (%(default)s)"
    )
    parser.add_argument("--temperature", type=temperature, default=1.0, help="(%(default)s)")
    parser.add_argument(
        "--max-tokens", type=positive, default=320, metavar="N", help="per answer (%(default)s)"
    )


def _precisions(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in PRECISIONS:
            raise argparse.ArgumentTypeError(f"unknown precision {name!r}: {', '.join(PRECISIONS)}")
    return names


def _modes(text: str) -> tuple[str, ...]:
    modes = tuple(part.strip() for part in text.split(","))
    for mode in modes:
        if mode not in MODES:
            raise argparse.ArgumentTypeError(f"unknown mode {mode!r}: {', '.join(MODES)}")
    return modes
