"""Everything the product should show on a GPU, within eight minutes; a table last, JSON beside it.

    python -m benchmarks.gpu [--model DIR] [--prompts FILE] [--json FILE]

The 8B model's weights are random, and which of its drafts are right is scripted: such figures say
what an acceptance is worth, not which one heads reach. SmolLM2-135M, if `--model` has it, decodes
with its trained heads; see `parcel` for how to send it. `--device cpu --quick` only shows that all
of it runs.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import exits, kernels, parcel, plain, rows, small
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Part, Report
from benchmarks.machine import describe_machine, print_facts

_TESTS = Path(__file__).parents[2] / "tests"


def main() -> int:
    """Run all parts; status 1 if any failed."""
    args = _parse()
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
        )
        return _run(bench, args)


def _run(bench: Bench, args: argparse.Namespace) -> int:
    report = Report(describe_machine() | _gpu_facts(), args.json, args.time_limit)
    print_facts(report.facts)
    for name, (budget_s, measure) in _parts(bench).items():
        if args.parts is None or name in args.parts:
            report.run(name, budget_s, measure)
            bench.release()
    report.print_table()
    return 1 if report.failures else 0


def _parts(bench: Bench) -> dict[str, tuple[float, Callable[[Part], None]]]:
    """Seconds each may take at most, and what it is, the most telling first."""
    parts: dict[str, tuple[float, Callable[[Bench, Part], None]]] = {
        "rows": (60, rows.measure),
        "plain": (70, plain.measure),
        "exits": (80, exits.measure),
        "kernels": (50, kernels.measure),
        "small": (90, small.measure),
        "batches": (60, exits.batches),
        "tests": (100, _tests),
        "transformers": (150, plain.against_transformers),
    }
    return {name: (budget_s, partial(call, bench)) for name, (budget_s, call) in parts.items()}


def _tests(bench: Bench, part: Part) -> None:
    """The tests that are for a GPU, where they and pytest are."""
    files = [
        _TESTS / "engine" / "model" / "test_cuda_ops.py",
        _TESTS / "engine" / "worker" / "test_cuda_graph.py",
    ]
    if not bench.is_cuda or not all(file.is_file() for file in files):
        part.add("pytest", "left out: no GPU, or no tests here")
        return
    # Without the project's configuration, which wants plugins that may not be here.
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
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("gpu.json"))
    parser.add_argument("--parts", type=lambda text: text.split(","), metavar="P,P", help="(all)")
    parser.add_argument("--time-limit", type=float, default=470.0, metavar="S", help="(470)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
