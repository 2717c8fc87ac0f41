"""The flags of each `adadecode heads` command."""

import argparse
from pathlib import Path

from training.engines import MODELLED
from training.flag_types import count, layer_numbers, output_file, positive, positive_number


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `heads train`."""
    _add_common_flags(parser, default_tokens=200_000)
    parser.add_argument("--output", type=Path, help="directory (<model directory>/exit_heads)")
    parser.add_argument(
        "--exit-layers",
        type=layer_numbers,
        help="comma-separated, 0 for embeddings (a tenth of the depth, or --start-from's)",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="find exit layers by forecasts, then by runs of the best few",
    )
    parser.add_argument(
        "--search-tokens",
        type=positive,
        default=40_000,
        help="tokens used for the search (%(default)s)",
    )
    parser.add_argument(
        "--candidates", type=positive, default=3, help="choices of exits to compare (%(default)s)"
    )
    _add_clock_flags(parser)
    parser.add_argument(
        "--vocabulary-size",
        metavar="N|auto",
        help="reduced vocabulary of the heads (4096, or --start-from's; with --search auto, found "
        "by forecasts)",
    )
    parser.add_argument("--epochs", type=positive, default=4, help="(%(default)s)")
    parser.add_argument(
        "--batch-tokens",
        type=positive,
        help="tokens per training step (512 on a CPU, 4096 on a GPU)",
    )
    parser.add_argument(
        "--learning-rate",
        type=positive_number,
        help="(1e-3 for 512 tokens per step, more for more)",
    )
    parser.add_argument(
        "--refine",
        type=count,
        metavar="SIZE",
        default=0,
        help="a gated MLP of this inner size after each head's linear part (%(default)s: none)",
    )
    parser.add_argument(
        "--start-from", type=Path, metavar="DIR", help="heads to train further instead of anew"
    )
    parser.add_argument(
        "--no-previous-token",
        action="store_true",
        help="heads without the previous token's last state (for comparisons)",
    )
    parser.add_argument(
        "--no-report", action="store_true", help="write only the heads: no page, no timed runs"
    )


def add_eval_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `heads eval`."""
    _add_common_flags(parser, default_tokens=5_000)
    parser.add_argument("--heads", type=Path, help="directory (the model's own heads)")


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `heads search`."""
    _add_common_flags(parser, default_tokens=10_000)
    parser.add_argument("--heads", type=Path, required=True, help="directory of trained heads")
    parser.add_argument("--output", type=Path, required=True, help="directory for the chosen heads")
    parser.add_argument(
        "--candidates", type=positive, default=5, help="choices of exits to compare (%(default)s)"
    )
    _add_clock_flags(parser)
    parser.add_argument(
        "--quantization",
        choices=["auto", "none", "int8", "q4"],
        default="auto",
        help="weights on a CPU, as they will be served (%(default)s)",
    )


def add_show_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `heads show`."""
    parser.add_argument("heads", type=Path, help="directory with heads.json")


def _add_common_flags(parser: argparse.ArgumentParser, *, default_tokens: int) -> None:
    parser.add_argument("model", help="local directory, .gguf file, hub id or built-in alias")
    parser.add_argument("--prompts", type=Path, help="JSON lines with prompt and, optionally, task")
    parser.add_argument("--no-code-prompts", action="store_true", help="use --prompts alone")
    parser.add_argument(
        "--work", type=Path, help="directory for intermediate files; a killed run resumes from it"
    )
    parser.add_argument(
        "--tokens",
        type=positive,
        default=default_tokens,
        help="self-generated tokens (%(default)s)",
    )
    parser.add_argument(
        "--max-new-tokens", type=positive, default=192, help="per prompt (%(default)s)"
    )
    parser.add_argument(
        "--memory-gib",
        type=positive_number,
        help="states, keys and values held at once (2 on a CPU, half of a GPU's memory)",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    parser.add_argument("--dtype", choices=dtypes, default="auto")
    parser.add_argument("--threads", type=positive, help="CPU threads (all cores)")


def _add_clock_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clock",
        choices=[MODELLED, "wall"],
        help="what choices are compared by: the costs of the parts of steps, measured once and the "
        f"same for all, or wall-clock time ({MODELLED})",
    )
    parser.add_argument(
        "--costs",
        type=output_file,
        metavar="FILE",
        help="the modelled clock's costs, as `bench heads` keeps them: read from FILE; those it "
        "lacks are measured and written there (measured, and kept in --work)",
    )
