"""Writes `report.html` beside trained heads: one page that fetches nothing, with inline SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.offline import GenerationResult
from engine.request import LOOKED_UP, TokenTrace
from training.evaluate import HeadFigures
from training.heads_file import read_facts
from training.replay import Forecast
from training.search_result import SearchResult
from training.timing import TimedRuns

_SAMPLES = 4  # texts shown


@dataclass(frozen=True, slots=True)
class Line:
    """A curve: its name and its points, x and y."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines over common axes from 0, laid out in SVG's coordinates."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    y_max: float = 1.0

    width, height = 460, 260
    left, bottom, top, right = 46, 38, 12, 12

    @property
    def x_max(self) -> float:
        """The largest x of all lines."""
        return max((x for line in self.lines for x, _ in line.points), default=1.0)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return a point's place in the picture."""
        inner_width = self.width - self.left - self.right
        inner_height = self.height - self.top - self.bottom
        return (
            round(self.left + inner_width * x / self.x_max, 1),
            round(self.top + inner_height * (1 - min(y, self.y_max) / self.y_max), 1),
        )

    def path(self, line: Line) -> str:
        """Return a line as the points of an SVG polyline."""
        return " ".join("{},{}".format(*self.place(x, y)) for x, y in line.points)

    @property
    def x_ticks(self) -> list[float]:
        """Round numbers up to the largest x."""
        return _ticks(self.x_max)

    @property
    def y_ticks(self) -> list[float]:
        """Round numbers up to the largest y."""
        return _ticks(self.y_max)


@dataclass(frozen=True, slots=True)
class Piece:
    """A token's text, the layer it exited at (or LOOKED_UP), and a note for its tooltip."""

    text: str
    layer: int
    note: str


def write_report(
    directory: Path,
    model: Path,
    figures: Mapping[int, HeadFigures],
    found: SearchResult | None,
    forecast: Forecast,
    timed: TimedRuns,
) -> Path:
    """Write the page beside `heads.json`.

    Args:
        model: The model's directory, for its tokenizer.
        found: The result of the search for exits; None: there was no search.
        forecast: Forecast for these heads, without prompt look-up.
        timed: Timed runs of these heads.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    facts = read_facts(directory)
    num_layers = max(
        (entry.exit_layer for result in timed.results for entry in result.trace), default=0
    )
    environment = Environment(
        loader=PackageLoader("training", "."), autoescape=select_autoescape(default=True)
    )
    page = environment.get_template("report.html.jinja").render(
        facts=facts,
        figures=figures,
        found=found,
        forecast=forecast,
        timed=timed,
        charts=_charts(figures, found),
        num_layers=num_layers,
        looked_up=LOOKED_UP,
        layers=[LOOKED_UP, *sorted(figures), num_layers],
        shares=_shares(timed.results),
        samples=[_pieces(result, tokenizer) for result in timed.results[:_SAMPLES]],
    )
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _charts(figures: Mapping[int, HeadFigures], found: SearchResult | None) -> list[Chart]:
    charts = [
        Chart(
            "Acceptance by draft position",
            "draft number in its run, those before being right",
            "agrees with the last layer",
            [
                Line(f"exit {n}", list(enumerate(f.agreement_by_draft, start=1)))
                for n, f in figures.items()
            ],
        ),
        Chart(
            "Calibration",
            "the head's confidence",
            "share of right drafts, temperature 0",
            [
                Line("perfect", [(0.0, 0.0), (1.0, 1.0)]),
                *(Line(f"exit {n}", _calibration_points(f)) for n, f in figures.items()),
            ],
        ),
    ]
    if found is not None:
        charts += _search_charts(found)
    return charts


def _search_charts(found: SearchResult) -> list[Chart]:
    first = [(curve.layer, curve.agreement[0]) for curve in found.curves]
    third = [(curve.layer, curve.agreement[2]) for curve in found.curves]
    speedups = [(curve.layer, curve.speedup) for curve in found.curves]
    sizes = sorted(found.vocabularies)
    return [
        Chart(
            "Agreement by layer",
            "layer (heads by ridge regression)",
            "agrees with the last layer",
            [Line("first draft", first), Line("third draft", third)],
        ),
        Chart(
            "Forecast by layer",
            "layer of a single exit",
            "times plain decoding",
            [Line("forecast", speedups)],
            y_max=max(speedup for _, speedup in speedups) * 1.1,
        ),
        Chart(
            "Reduced vocabulary",
            "tokens",
            "coverage of the model's output, forecast",
            [
                Line("coverage", [(size, found.vocabularies[size][0]) for size in sizes]),
                Line("forecast", [(size, found.vocabularies[size][1]) for size in sizes]),
            ],
            y_max=max(1.0, *(forecast for _, forecast in found.vocabularies.values())) * 1.1,
        ),
    ]


def _calibration_points(figures: HeadFigures) -> list[tuple[float, float]]:
    calibration = figures.calibration
    lower = [0.0, *calibration.edges]
    middles = [(a + b) / 2 for a, b in zip(lower, calibration.edges, strict=False)]
    return list(zip(middles, calibration.greedy, strict=True))


def _shares(results: Sequence[GenerationResult]) -> dict[int, float]:
    """Return the share of tokens by the layer they exited at."""
    layers = [entry.exit_layer for result in results for entry in result.trace]
    return {layer: layers.count(layer) / len(layers) for layer in sorted(set(layers))}


def _pieces(result: GenerationResult, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    return [
        Piece(tokenizer.decode([entry.token_id]), entry.exit_layer, _note(entry))
        for entry in result.trace
    ]


def _note(entry: TokenTrace) -> str:
    where = "looked up" if entry.source == "lookup" else f"layer {entry.exit_layer}"
    sure = "" if entry.confidence is None else f", confidence {entry.confidence:.2f}"
    lost = f", {len(entry.rejected)} drafts rejected" if entry.rejected else ""
    return where + sure + lost


def _ticks(most: float) -> list[float]:
    """Return a few round numbers from 0 to at most `most`."""
    step = 10.0 ** len(str(int(most))) / 10
    for share in (0.1, 0.2, 0.25, 0.5, 1, 2):
        if most / (step * share) <= 6:
            step *= share
            break
    return [round(step * n, 6) for n in range(int(most / step + 1e-9) + 1)]
