"""Flags and checks that the benchmarks of native kernels share."""

import argparse
from collections.abc import Sequence

from engine.model.ops.native.linear import Format
from engine.model.ops.native_ops import NativeOps
from engine.worker.cores import usable_cores


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags for the model, the forms of its weights, and the number of threads."""
    parser.add_argument("model", metavar="MODEL", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument(
        "--forms", type=_forms, default="float32,bfloat16,int8,int4", metavar="F,F",
        help="(%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--round-activations", action="store_true", help="to 8 bits, for forms int8 and int4"
    )


def native_ops(args: argparse.Namespace, form: Format, cores: Sequence[int] = ()) -> NativeOps:
    """Return kernels for a form of weights, with threads and rounding from the flags."""
    rounds = args.round_activations
    return NativeOps(args.threads, form, cores=cores, rounds_activations=rounds)


def require_native() -> None:
    """End the program if native kernels are not available.

    Raises:
        SystemExit: if they are not, with the reason.
    """
    if reason := NativeOps.unavailable_reason():
        raise SystemExit(f"native kernels are not available: {reason}")


def numbers(text: str) -> Sequence[int]:
    """Parse the numbers of a comma-separated flag."""
    return [int(part) for part in text.split(",")]


def _forms(text: str) -> list[Format]:
    names = [part.upper() for part in text.split(",")]
    if unknown := set(names) - Format.__members__.keys():
        there_are = ", ".join(name.lower() for name in Format.__members__)
        raise argparse.ArgumentTypeError(f"{', '.join(unknown).lower()}: there are {there_are}")
    return [Format[name] for name in names]
