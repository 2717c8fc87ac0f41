"""Plots speed-up against acceptance, from the JSON file that `python -m benchmarks.gpu` wrote.

    python -m benchmarks.gpu.curve gpu.json curve.png

This needs matplotlib, but no GPU: copy the JSON file from the GPU machine.
"""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks.gpu.report import Figure, Report
from benchmarks.plots import plot_curves, require_matplotlib

Curve = list[tuple[float, float]]


def curves(figures: list[Figure]) -> dict[str, Curve]:
    """Return ascending points (acceptance, speed-up) by exit, where every token drafts."""
    found: dict[str, Curve] = defaultdict(list)
    for figure in figures:
        at = figure.at
        if at.get("coverage") == 1.0 and not isinstance(figure.value, str):
            found[f"exit at layer {at['exit']:.0f}"].append((at["acceptance"], figure.value))
    return {name: sorted(points) for name, points in found.items()}


def main() -> int:
    """Entry point of `python -m benchmarks.gpu.curve`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.curve", description=__doc__)
    parser.add_argument("json", type=Path, metavar="JSON")
    parser.add_argument("picture", type=Path, metavar="FILE")
    args = parser.parse_args()
    try:
        require_matplotlib()
        report = Report.read(args.json, deadline=0.0)
    except (ValueError, KeyError, TypeError) as error:
        parser.error(f"{args.json}: {error}")
    drawn = curves(report.figures)
    if not drawn:
        parser.error(f"{args.json} has no figures of the part `exits`")
    plot_curves(
        drawn,
        args.picture,
        title=report.facts.get("gpu", "no GPU"),
        labels=("share of drafts that are right", "speed-up over plain decoding"),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
