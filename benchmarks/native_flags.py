"""What the benchmarks of native kernels, `python -m benchmarks.…`, ask for alike."""

import argparse
from collections.abc import Sequence

from engine.model.ops.native_ops import NativeOps
from engine.worker.cores import usable_cores


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The model, the forms of its weights, and how many threads."""
    parser.add_argument("model", metavar="MODEL", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--forms", default="float32,bfloat16,int8,int4", help="(%(default)s)")


def require_native() -> None:
    """Raises:
    SystemExit: there are no native kernels here.
    """
    if reason := NativeOps.unavailable_reason():
        raise SystemExit(f"native kernels are not available: {reason}")


def numbers(text: str) -> Sequence[int]:
    """Those of a comma-separated flag."""
    return [int(part) for part in text.split(",")]
