"""The `adadecode bench` command.

It also runs as `python -m benchmarks.cli` where only torch and transformers are installed.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from benchmarks import command_flags, faults, fuzz, overload, prefix, serve, soak, traces
from engine.errors import EngineError


@dataclass(frozen=True, slots=True)
class Command:
    """One benchmark."""

    name: str
    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    module: str  # has `run`; imported for the chosen command only, since most import torch


COMMANDS = (
    Command(
        "latency",
        "plain decoding, early exits and transformers side by side",
        command_flags.add_latency_flags,
        "benchmarks.latency",
    ),
    Command(
        "heads",
        "exit heads against one another, at fixed costs",
        command_flags.add_heads_flags,
        "benchmarks.heads",
    ),
    Command(
        "peers",
        "one stream beside llama.cpp and transformers, precision by precision (CPU)",
        command_flags.add_peers_flags,
        "benchmarks.peers",
    ),
    Command(
        "lossless",
        "do early exits ever change a token, in any way of drafting?",
        command_flags.add_lossless_flags,
        "benchmarks.lossless",
    ),
    Command(
        "ablation",
        "early exits with one part left out at a time, against plain decoding",
        command_flags.add_ablation_flags,
        "benchmarks.ablation",
    ),
    Command(
        "calibration",
        "are the policy's estimates of acceptance right, after some traffic?",
        command_flags.add_calibration_flags,
        "benchmarks.calibration",
    ),
    Command(
        "rounding",
        "how far do smaller weights and rounded activations lead from float32? (CPU)",
        command_flags.add_rounding_flags,
        "benchmarks.rounding",
    ),
    Command(
        "learn",
        "heads that learn while serving against shipped ones, as the domain changes",
        command_flags.add_learning_flags,
        "benchmarks.learning",
    ),
    Command(
        "structured",
        "answers under a schema: do they follow it, and do early exits change any?",
        command_flags.add_structured_flags,
        "benchmarks.structured",
    ),
    Command(
        "serve",
        "load on a running server: latencies, throughput, acceptance",
        serve.add_arguments,
        "benchmarks.serve",
    ),
    Command(
        "prefix",
        "time to the first token of a prompt that is already in the prefix cache",
        prefix.add_arguments,
        "benchmarks.prefix",
    ),
    Command(
        "faults",
        "kill a server's worker under load: are streams lost, do texts change?",
        faults.add_arguments,
        "benchmarks.faults",
    ),
    Command(
        "soak",
        "mixed traffic with aborts and worker kills: is anything lost or leaked?",
        soak.add_arguments,
        "benchmarks.soak",
    ),
    Command(
        "traces",
        "requests that share prefixes, cancelled and repeated: is any answer wrong?",
        traces.add_arguments,
        "benchmarks.traces",
    ),
    Command(
        "overload",
        "idle connections and twice the load: how fast are probes answered?",
        overload.add_arguments,
        "benchmarks.overload",
    ),
    Command(
        "fuzz",
        "requests with something wrong in them: are they handled correctly?",
        fuzz.add_arguments,
        "benchmarks.fuzz",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands of `bench`."""
    parsers = parser.add_subparsers(metavar="BENCHMARK", required=True)
    for command in COMMANDS:
        text = "Defaults are in parentheses."
        subparser = parsers.add_parser(command.name, help=command.help, epilog=text)
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)


def run(args: argparse.Namespace) -> int:
    """Carry out a parsed `bench` command and return the exit status."""
    command: Command = args.command
    try:
        status: int = import_module(command.module).run(args)
    except BrokenPipeError:  # the `adadecode` command knows what to do
        raise
    except (EngineError, ValueError, OSError) as error:
        print(f"adadecode bench {command.name}: {error}", file=sys.stderr)
        return 1 if isinstance(error, OSError) else 2
    return status


def main() -> int:
    """Entry point of `python -m benchmarks.cli`."""
    parser = argparse.ArgumentParser(prog="adadecode bench")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
