"""The `adadecode bench` command.

It also runs as `python -m benchmarks.cli` where only torch and transformers are installed.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import faults, fuzz, overload, prefix, serve, soak, traces
from benchmarks.comparison import MODES
from benchmarks.domains import DOMAINS
from benchmarks.peer_files import PRECISIONS
from engine.errors import EngineError

_CLOCKS = {
    "wall": "wall: the time of day's",
    "cpu": "cpu: the process's CPU seconds, for machines that do other work, with --threads 1",
}

# Commands whose modules do not import torch; an engine that they make imports it then.
_WITHOUT_TORCH = {
    "serve": (serve, "load on a running server: latencies, throughput, acceptance"),
    "prefix": (
        prefix,
        "time to the first token of a prompt that is in the prefix cache already",
    ),
    "faults": (faults, "kill a server's worker under load: are streams lost, do texts change?"),
    "soak": (soak, "mixed traffic with aborts and worker kills: is anything lost or leaked?"),
    "traces": (traces, "requests alike, cancelled and repeated: is any answer not its own?"),
    "overload": (overload, "idle connections and twice the load: how soon are probes answered?"),
    "fuzz": (fuzz, "requests with something wrong in them: does the server keep its poise?"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands of `bench`."""
    commands = parser.add_subparsers(dest="bench_command", metavar="BENCHMARK", required=True)
    latency = commands.add_parser(
        "latency", help="plain decoding, early exits and transformers side by side"
    )
    _add_model_arguments(latency)
    _add_contest_arguments(latency)
    latency.add_argument("--json", type=Path, metavar="FILE", help="write every figure and run")
    latency.add_argument("--plot", type=Path, metavar="FILE", help="write a bar chart (PNG, SVG)")
    heads = commands.add_parser(
        "heads", help="exit heads against one another, at costs that are held fixed"
    )
    _add_model_arguments(heads, many_heads=True)
    _add_heads_arguments(heads)
    peers = commands.add_parser(
        "peers", help="one stream beside llama.cpp and transformers, precision by precision (CPU)"
    )
    _add_peers_arguments(peers)
    lossless = commands.add_parser(
        "lossless", help="whether early exits ever change a token, over every way of drafting"
    )
    _add_model_arguments(lossless)
    _add_prompt_arguments(lossless)
    lossless.add_argument(
        "--temperatures", type=_temperatures, default=(0.0, 0.8), metavar="T,T", help="(0,0.8)"
    )
    lossless.add_argument(
        "--ways",
        choices=("all", "heads"),
        default="all",
        help="heads: only the trained ones, alone and in batches, which is minutes (%(default)s)",
    )
    ablation = commands.add_parser(
        "ablation", help="early exits with one part taken away at a time, against plain decoding"
    )
    _add_model_arguments(ablation)
    _add_prompt_arguments(ablation)
    _add_clock_arguments(ablation)
    _add_group_arguments(ablation, (1,))
    ablation.add_argument("--temperature", type=float, default=0.0, help="(%(default)s: greedy)")
    ablation.add_argument(
        "--row", action="append", metavar="NAME", help="only that row, as often as wanted (all)"
    )
    ablation.add_argument(
        "--retrained",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="heads trained for a row (`heads train --no-previous-token`, other --exit-layers): in "
        "place of the row of that name, or as one more",
    )
    ablation.add_argument("--markdown", type=Path, metavar="FILE", help="write the table")
    ablation.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG, SVG)")
    calibration = commands.add_parser(
        "calibration", help="are the policy's chances of acceptance true, after some traffic?"
    )
    _add_model_arguments(calibration)
    _add_prompt_arguments(calibration)
    calibration.add_argument(
        "--temperatures", type=_temperatures, default=(0.0, 0.8), metavar="T,T", help="(0,0.8)"
    )
    calibration.add_argument(
        "--warm-up", type=int, default=500, metavar="N", help="tokens of traffic (%(default)s)"
    )
    learn = commands.add_parser(
        "learn", help="heads that learn while serving, on a change of domain, against shipped ones"
    )
    _add_model_arguments(learn)
    _add_learning_arguments(learn)
    structures = commands.add_parser(
        "structured", help="answers that follow a schema: do they, and do early exits change any?"
    )
    _add_model_arguments(structures)
    _add_structured_arguments(structures)
    for name, (command, text) in _WITHOUT_TORCH.items():
        command.add_arguments(commands.add_parser(name, help=text))


def run(args: argparse.Namespace) -> int:
    """Carry out a parsed `bench` command and return the exit status."""
    if args.bench_command in _WITHOUT_TORCH:
        commands = {name: command.run for name, (command, _) in _WITHOUT_TORCH.items()}
    else:
        from benchmarks import (
            ablation,
            calibration,
            heads,
            latency,
            learning,
            lossless,
            peers,
            structured,
        )

        commands = {
            "ablation": ablation.run,
            "calibration": calibration.run,
            "heads": heads.run,
            "latency": latency.run,
            "learn": learning.run,
            "lossless": lossless.run,
            "peers": peers.run,
            "structured": structured.run,
        }
    try:
        return commands[args.bench_command](args)
    except (EngineError, ValueError) as error:
        print(f"adadecode bench {args.bench_command}: {error}", file=sys.stderr)
        return 2


def _add_model_arguments(parser: argparse.ArgumentParser, *, many_heads: bool = False) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="smollm2-135m-instruct",
        help="local directory, .gguf file, hub id or built-in alias (%(default)s)",
    )
    parser.add_argument(
        "--heads",
        type=Path,
        metavar="DIR",
        action="append" if many_heads else "store",
        help="exit heads, as often as there are any (the model's own)"
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
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (all cores)")


def _add_peers_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        default="smollm2-135m-instruct",
        help=".gguf file or built-in alias; without llama.cpp any model (%(default)s)",
    )
    parser.add_argument("--heads", type=Path, metavar="DIR", help="exit heads (the model's own)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (all cores)")
    parser.add_argument(
        "--llama-bench",
        type=Path,
        metavar="FILE",
        help="llama.cpp's llama-bench (the one on PATH; none: without llama.cpp)",
    )
    parser.add_argument(
        "--precisions",
        type=_precisions,
        default=PRECISIONS,
        metavar="P,P",
        help=f"({','.join(PRECISIONS)})",
    )
    parser.add_argument("--rounds", type=_positive, default=5, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--max-tokens", type=_positive, default=96, metavar="N", help="decoded (%(default)s)"
    )
    parser.add_argument(
        "--prompt-tokens", type=_positive, default=256, metavar="N", help="(%(default)s)"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSON lines (built in)")
    parser.add_argument("--no-transformers", action="store_true", help="leave transformers out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure and run")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a bar chart (PNG, SVG)")


def _add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSON lines with task and prompt (built in)"
    )
    parser.add_argument(
        "--num-prompts", type=_positive, metavar="N", help="at most so many of each task (all)"
    )
    parser.add_argument(
        "--max-tokens", type=_positive, default=128, metavar="N", help="per prompt (%(default)s)"
    )


def _add_clock_arguments(parser: argparse.ArgumentParser, default: str = "wall") -> None:
    """Declare the flags of commands that can run on a modelled clock."""
    modelled = (
        "modelled: what the parts of steps are said to cost, measured at the start and then held "
        "fixed, whatever else the machine does; tells nothing of long contexts"
    )
    parser.add_argument(
        "--clock",
        choices=(*_CLOCKS, "modelled"),
        default=default,
        help=f"{'; '.join((*_CLOCKS.values(), modelled))} (%(default)s)",
    )
    parser.add_argument(
        "--costs",
        type=Path,
        metavar="FILE",
        help="the modelled clock's costs, to repeat a run exactly: read from there, written there "
        "where they are not known yet (measured anew)",
    )


def _add_heads_arguments(parser: argparse.ArgumentParser) -> None:
    _add_prompt_arguments(parser)
    _add_clock_arguments(parser, default="modelled")
    _add_group_arguments(parser, (1,))
    parser.add_argument("--temperature", type=float, default=0.0, help="(%(default)s: greedy)")
    parser.add_argument("--no-lookup-drafts", action="store_true", help="heads alone draft")
    parser.add_argument(
        "--no-second-candidates", action="store_true", help="one candidate for a place of a draft"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")


def _add_group_arguments(parser: argparse.ArgumentParser, default: tuple[int, ...]) -> None:
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
        "order: as they come, the tasks taking turns (by task where each has enough prompts)",
    )
    parser.add_argument(
        "--continuous",
        action="store_true",
        help="where a prompt ends the next one begins, as in a server under load (a group runs to "
        "its end before the next begins)",
    )


def _add_contest_arguments(parser: argparse.ArgumentParser) -> None:
    _add_prompt_arguments(parser)
    _add_clock_arguments(parser)
    parser.add_argument("--temperature", type=float, default=0.0, help="(%(default)s: greedy)")
    _add_group_arguments(parser, (1, 4, 8))
    parser.add_argument(
        "--modes",
        type=_modes,
        metavar="M,M",
        help=f"({','.join(MODES)}, as far as the clock can tell)",
    )
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="fixed confidence threshold (cost-aware)"
    )
    parser.add_argument(
        "--max-draft-tokens", type=_positive, default=15, metavar="N", help="(%(default)s)"
    )


def _add_learning_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--domain",
        choices=tuple(DOMAINS),
        default="german",
        help="what the traffic changes to (%(default)s)",
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="JSON lines with task and prompt instead"
    )
    parser.add_argument(
        "--num-prompts", type=_positive, default=40, metavar="N", help="of it (%(default)s)"
    )
    parser.add_argument(
        "--familiar", type=int, default=6, metavar="N", help="other ones before (%(default)s)"
    )
    parser.add_argument("--window", type=_positive, default=8, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--share", type=float, default=0.1, help="of the worker's time (%(default)s)"
    )
    parser.add_argument("--no-lookup-drafts", action="store_true", help="heads alone draft")
    parser.add_argument(
        "--max-tokens", type=_positive, default=96, metavar="N", help="per prompt (%(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="(%(default)s: greedy)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG, SVG)")
    _add_clock_arguments(parser)


def _add_structured_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-schemas", type=_positive, metavar="N", help="at most so many (all)")
    parser.add_argument(
        "--skip-schemas", type=int, default=0, metavar="N", help="leave out the first (%(default)s)"
    )
    parser.add_argument(
        "--num-seeds", type=_positive, default=10, metavar="N", help="per schema (%(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="(%(default)s)")
    parser.add_argument(
        "--max-tokens", type=_positive, default=320, metavar="N", help="per answer (%(default)s)"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("should be at least 1")
    return number


def _concurrencies(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in text.split(",")}))


def _temperatures(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


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


def main() -> int:
    """Entry point of `python -m benchmarks.cli`."""
    parser = argparse.ArgumentParser(prog="adadecode bench")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
