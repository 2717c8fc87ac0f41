"""Measures the product on a GPU within eight minutes, and writes a table and a JSON file.

    python -m benchmarks.gpu [--model DIR] [--prompts FILE] [--json FILE] [--parts P,P]

The 8B model's weights are random, and which of its drafts are right is scripted: its figures show
what an acceptance rate is worth, not which one heads reach. SmolLM2-135M, if given with `--model`,
decodes with its trained heads; `benchmarks.gpu.parcel` packs it for transfer. With `--device cpu
--quick` the run only checks that everything works.
"""

import argparse
import faulthandler
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import exits, kernels, parcel, plain, rows, small, tune
from benchmarks.gpu.attempts import DEVICE_BROKEN, run_parts
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Part, Report
from benchmarks.machine import describe_machine, print_facts
from engine.model.ops.cuda.tiles import TABLE
from engine.worker.device_errors import is_device_broken
from training.flag_types import output_file

_TESTS = Path(__file__).parents[2] / "tests"
_KEPT_OF_ALL = 0.65  # most of the time that may be reserved for parts
# For each part the function, the most seconds that it may take, and the seconds that are reserved
# for it whatever the parts before it take. The most important parts come first.
_PARTS: dict[str, tuple[Callable[[Bench, Part], None], float, float]] = {
    "rows": (rows.measure, 60, 0),
    "tune": (tune.measure, 75, 0),
    "plain": (plain.measure, 70, 45),
    "exits": (exits.measure, 80, 50),
    "transformers": (plain.against_transformers, 130, 60),
    "small": (small.measure, 90, 50),
    "batches": (exits.batches, 60, 40),
    "kernels": (kernels.measure, 50, 20),
}


def main() -> int:
    """Run all parts; return status 1 if any failed."""
    args = _parse()
    deadline = args.deadline or time.time() + args.time_limit
    chosen = list(_parts()) if args.parts is None else args.parts
    if args.deadline is not None:
        return _run_here(args, chosen, deadline)

    def command(parts: Sequence[str]) -> list[str]:
        options = [*sys.argv[1:], *_own_options(parts, deadline)]
        return [sys.executable, "-m", "benchmarks.gpu", *options]

    report = run_parts(command, chosen, args.json, deadline)
    report.print_table()
    return 1 if report.failures else 0


def _own_options(parts: Sequence[str], deadline: float) -> list[str]:
    """Return the options that make a process run these parts itself."""
    return ["--parts", ",".join(parts), "--deadline", str(deadline)]


def _run_here(args: argparse.Namespace, chosen: Sequence[str], deadline: float) -> int:
    """Run parts in this process until one breaks the device."""
    faulthandler.enable()
    report = Report.read(args.json, deadline)
    if not report.facts:
        report.facts = describe_machine() | _gpu_facts()
        own = sys.argv[1 : -len(_own_options([], 0.0))]
        report.facts["command"] = " ".join(["python -m benchmarks.gpu", *own])
        print_facts(report.facts)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model
        if model is not None and parcel.is_parcel(model):
            model = parcel.unpack(model, Path(folder) / "model")
        bench = Bench(
            device=torch.device(args.device),
            is_quick=args.quick,
            model=model,
            prompts=args.prompts,
            folder=Path(folder),
            tiles=args.tiles,
        )
        parts = _parts()
        share = kept_share([parts[name][2] for name in chosen], deadline - time.time())
        for name in chosen:
            measure, budget_s, _ = parts[name]
            later = chosen[chosen.index(name) + 1 :]
            kept_s = share * sum(parts[other][2] for other in later)
            if args.quick:  # the machine may be slow: only the whole run is limited
                budget_s, kept_s = args.time_limit, 0.0
            error = report.run(name, budget_s, partial(measure, bench), kept_s=kept_s)
            if isinstance(error, Exception) and is_device_broken(error):
                return DEVICE_BROKEN
            bench.release()
    return 0


def kept_share(kept_s: Sequence[float], left_s: float) -> float:
    """Return the share of the reserved seconds that can be kept, if not all of them can.

    Part of the time left stays free for parts that nothing is reserved for.
    """
    return min(1.0, _KEPT_OF_ALL * left_s / max(sum(kept_s), 1.0))


def _parts() -> dict[str, tuple[Callable[[Bench, Part], None], float, float]]:
    return _PARTS | {"tests": (_tests, 100, 10)}


def _tests(bench: Bench, part: Part) -> None:
    """Run the tests that need a GPU, if they are here."""
    files = [
        _TESTS / "engine" / "model" / "test_cuda_ops.py",
        _TESTS / "engine" / "worker" / "test_cuda_graph.py",
    ]
    if not bench.is_cuda or not all(file.is_file() for file in files):
        part.add("pytest", "left out: no GPU, or no tests here")
        return
    # Without the project's configuration, which needs plugins that may not be installed.
    options = ["-q", "-c", os.devnull, "--import-mode=importlib", "-p", "no:cacheprovider"]
    paths = [str(_TESTS.parent), str(_TESTS / "support"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        cwd=_TESTS.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["silent"]
    part.add("pytest", lines[-1], is_met=done.returncode == 0)
    if done.returncode != 0:
        raise AssertionError(f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}")


def _gpu_facts() -> dict[str, str]:
    facts = {}
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        facts["cuda"] = f"{torch.version.cuda}, compute capability {major}.{minor}"
    try:
        import triton
    except ImportError:
        facts["triton"] = "not installed"
    else:
        facts["triton"] = triton.__version__
    return facts


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, few tokens")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="SmolLM2-135M in Hugging Face's layout, or in pieces (random)",
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="JSON lines (built in)")
    parser.add_argument("--json", type=output_file, metavar="FILE", default=Path("gpu.json"))
    parser.add_argument("--parts", type=_names, metavar="P,P", help="(all)")
    parser.add_argument("--time-limit", type=float, default=450.0, metavar="S", help="(450)")
    parser.add_argument(
        "--tiles", type=Path, default=TABLE, metavar="FILE", help="for `tune` (where it is read)"
    )
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(_parts()):
        raise argparse.ArgumentTypeError(f"no such parts: {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
