"""Plots comparisons with matplotlib; `require_matplotlib` fails before anything is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import TaskComparison

_COLOURS = {
    "plain": "#9aa0a6",
    "early-exit": "#1a73e8",
    "early exits": "#1a73e8",
    "transformers": "#e8a33d",
    "llama.cpp": "#7a5195",
}


def require_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        ValueError: if it is not.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install matplotlib") from None


def plot_latency(comparisons: Sequence[TaskComparison], path: Path, title: str) -> None:
    """Plot tokens per second of every mode as bars by task, with a panel per concurrency."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    concurrencies = list(dict.fromkeys(entry.concurrency for entry in comparisons))
    panels = [[e for e in comparisons if e.concurrency == c] for c in concurrencies]
    figure, axes = pyplot.subplots(
        1,
        len(panels),
        squeeze=False,
        figsize=(2.5 + sum(0.5 + 0.9 * len(panel) for panel in panels), 4),
        width_ratios=[1 + len(panel) for panel in panels],
        layout="constrained",
    )
    for axis, concurrency, panel in zip(axes[0], concurrencies, panels, strict=True):
        _draw_panel(axis, panel)
        axis.set_title("one at a time" if concurrency == 1 else f"{concurrency} at once")
    axes[0][0].set_ylabel("output tokens per second")
    axes[0][0].legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


@dataclass(frozen=True, slots=True)
class RatioBar:
    """A bar that shows a speed as a multiple of plain decoding's."""

    name: str
    ratio: float
    is_lossless: bool = True  # if not, its output differs, and the bar is drawn pale


def plot_ratios(bars: Sequence[RatioBar], path: Path, title: str) -> None:
    """Plot horizontal bars, the first at the top, and a line at 1."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 1 + 0.4 * len(bars)), layout="constrained")
    names = [bar.name if bar.is_lossless else f"{bar.name} (another text)" for bar in bars]
    colours = ["#1a73e8" if bar.is_lossless else "#d2e3fc" for bar in bars]
    drawn = axis.barh(names, [bar.ratio for bar in bars], color=colours)
    axis.bar_label(drawn, fmt="%.2f", fontsize=8, padding=2)
    axis.axvline(1.0, color="#9aa0a6", linewidth=1)
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, wrap=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _draw_panel(axis: object, panel: Sequence[TaskComparison]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axis, Axes)
    modes = list(panel[0].modes)
    width = 0.8 / len(modes)
    for number, mode in enumerate(modes):
        places = [group + (number - (len(modes) - 1) / 2) * width for group in range(len(panel))]
        heights = [entry.modes[mode].tokens_per_s for entry in panel]
        bars = axis.bar(places, heights, width, label=mode, color=_COLOURS[mode])
        axis.bar_label(bars, fmt="%.0f", fontsize=7)
    axis.set_xticks(range(len(panel)), [entry.task for entry in panel])
    axis.spines[["top", "right"]].set_visible(False)


def plot_peers(speeds: Mapping[tuple[str, str], float], path: Path, title: str) -> None:
    """Plot tokens per second, given by precision and contestant, as bars grouped by precision."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    precisions = list(dict.fromkeys(precision for precision, _ in speeds))
    contestants = list(dict.fromkeys(name for _, name in speeds))
    width = 0.8 / len(contestants)
    figure, axis = pyplot.subplots(figsize=(2 + 1.6 * len(precisions), 4), layout="constrained")
    for number, name in enumerate(contestants):
        groups = [group for group, p in enumerate(precisions) if (p, name) in speeds]
        places = [group + (number - (len(contestants) - 1) / 2) * width for group in groups]
        heights = [speeds[precisions[group], name] for group in groups]
        bars = axis.bar(places, heights, width, label=name, color=_COLOURS[name])
        axis.bar_label(bars, fmt="%.0f", fontsize=7)
    axis.set_xticks(range(len(precisions)), precisions)
    axis.set_ylabel("decoded tokens per second, one stream")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    path: Path,
    title: str,
    labels: tuple[str, str],
    *,
    level: float | None = 1.0,
) -> None:
    """Plot a line of points (x, y) for every name.

    Args:
        labels: Labels of the x and the y axis.
        level: Height of an additional horizontal line; None: there is none.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for name, points in curves.items():
        axis.plot([x for x, _ in points], [y for _, y in points], marker="o", label=name)
    if level is not None:
        axis.axhline(level, color="#9aa0a6", linewidth=1)
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    axis.set_title(title, wrap=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
