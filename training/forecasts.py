"""Forecasts the speed-up of single exits and of pairs, from what heads expect of known texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.model.exit_head import Calibration
from training.costs import PartCosts
from training.json_file import read_json, write_json
from training.progress import ProgressReport
from training.replay import Forecast, Opinions, Replay
from training.states import HiddenStates

_PAIRED = 3  # best single exits that pairs are formed with
_SECOND_EXITS = 6  # second exits tried with each of those


@dataclass(frozen=True, slots=True)
class CalibratedOpinions:
    """Heads' opinions on known texts and how often they are right, by exit layer."""

    opinions: Mapping[int, Opinions]
    calibration: Mapping[int, Calibration]
    vocabulary_size: int

    @classmethod
    def of(
        cls, opinions: Mapping[int, Opinions], states: HiddenStates, size: int
    ) -> "CalibratedOpinions":
        """Calibrate the opinions on the texts they were formed on."""
        return cls(opinions, {n: each.calibration(states) for n, each in opinions.items()}, size)


class Forecaster:
    """Makes forecasts with the costs of this machine, each once: they are kept in a file."""

    def __init__(self, replay: Replay, costs: PartCosts, work: Path) -> None:
        self._replay = replay
        self._costs = costs
        self._path = work / "forecasts.json"
        self._speedups: dict[str, float] = read_json(self._path) or {}

    def forecast(
        self, exit_layers: Sequence[int], heads: CalibratedOpinions, threshold: float | None = None
    ) -> Forecast:
        """Return the forecast for exits at some of the layers that have heads.

        Args:
            threshold: Fixed confidence threshold of all exits; None: the policy decides.
        """
        layers, size = list(exit_layers), heads.vocabulary_size
        name = f"exits {layers}, {size} tokens, threshold {threshold}"
        if name in self._speedups:
            speedup = self._speedups[name]
            return Forecast(exit_layers=layers, threshold=threshold, speedup=speedup)
        forecast = self._replay.forecast(
            {layer: heads.opinions[layer] for layer in layers},
            {layer: heads.calibration[layer] for layer in layers},
            self._costs.model(layers, size),
            self._costs.model([], size).plain(1),
            threshold,
        )
        self._speedups[name] = forecast.speedup
        write_json(self._path, self._speedups)
        return forecast


def all_forecasts(forecaster: Forecaster, heads: CalibratedOpinions) -> list[Forecast]:
    """Forecast every single exit, and pairs whose first exit is one of the best of those."""
    layers = list(heads.opinions)
    with ProgressReport("forecasts", len(layers), "choices") as report:
        forecasts: list[Forecast] = []
        for layer in layers:
            forecasts.append(forecaster.forecast([layer], heads))
            report.update(len(forecasts))
        best = sorted(forecasts, key=lambda each: each.speedup, reverse=True)[:_PAIRED]
        firsts = [forecast.exit_layers[0] for forecast in best]
        pairs = [
            [first, second]
            for first in firsts
            for second in _spread([layer for layer in layers if layer > first], _SECOND_EXITS)
        ]
        report.total += len(pairs)
        for pair in pairs:
            forecasts.append(forecaster.forecast(pair, heads))
            report.update(len(forecasts))
    return forecasts


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the values, evenly spaced, with the first among them."""
    step = max(1, -(-len(values) // count))
    return list(values[::step])
