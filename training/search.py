"""`heads train --search`: which exits, and how large a reduced vocabulary.

On a sample of the model's output, states at every layer:

    heads by ridge regression → what each expects → forecasts of every exit and of pairs, with the
    measured costs of segments and heads → the best few, trained a little → timed runs → the fastest

Forecasts are the policy's own (see `replay`). Every stage leaves a file; a killed run goes on.
"""

import logging
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, zip_longest
from pathlib import Path

from safetensors.torch import load_file, save_file

from engine.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.exit_head import Calibration
from training.collect import ShardPaths
from training.costs import PartCosts, measure_costs
from training.evaluate import evaluate_head
from training.generations import Generation, reduced_vocabulary
from training.head_factory import HeadFactory
from training.heads_file import model_facts, write_heads
from training.json_file import read_json, write_json
from training.progress import ProgressReport
from training.replay import Forecast, Opinions, Replay, form_opinions
from training.search_result import Candidate, LayerCurve, SearchResult
from training.states import ROWS_PER_SHARD, HiddenStates
from training.texts import GreedyTexts
from training.threads import torch_threads
from training.timing import Stopwatch, TimedRuns
from training.train_head import TrainingConfig

logger = logging.getLogger(__name__)

VOCABULARY_SIZES = (2048, 4096, 8192, 16384)
_FIRST_SIZE = 4096  # that exits are compared with
_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_FIT_SHARE = 0.75  # of the sample's shards; the others are replayed
_PAIRED = 3  # the best single exits get a second one
_SECOND_EXITS = 6  # tried with each of them
_TIMED_PROMPTS, _TIMED_LENGTH = 8, 96


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How much is tried."""

    num_tokens: int  # of the sample
    num_candidates: int = 3  # trained and timed
    epochs: int = 2
    vocabulary_size: int | None = None  # None: found, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is searched on: generations, and their states at every layer."""

    training: Sequence[Generation]
    held_out: Sequence[Generation]
    training_paths: ShardPaths
    held_out_paths: ShardPaths


class Search:
    """One search on one model."""

    def __init__(
        self,
        model: ModelConfig,
        decoder: Decoder,
        sample: Sample,
        options: SearchOptions,
        work: Path,
        max_bytes: int,
    ) -> None:
        self._model = model
        self._decoder = decoder
        self._sample = sample
        self._options = options
        self._work = work
        self._max_bytes = max_bytes
        num_fit = max(1, round(_FIT_SHARE * len(sample.training_paths)))
        self._fit_paths = sample.training_paths[:num_fit]
        self._texts = GreedyTexts(  # that no cheap head is fitted on
            [*sample.training[num_fit * ROWS_PER_SHARD :], *sample.held_out],
            [*sample.training_paths[num_fit:], *sample.held_out_paths],
        )
        work.mkdir(parents=True, exist_ok=True)

    def run(self) -> SearchResult:
        """Find exits, and the size of the reduced vocabulary."""
        sizes = self._sizes()
        forecaster = _Forecaster(
            Replay(self._decoder.spec, self._texts.states), self._costs(sizes), self._work
        )
        first_size = min(sizes, key=lambda size: abs(size - _FIRST_SIZE))
        cheap = self._cheap_heads(first_size)
        forecasts = _all_forecasts(forecaster, cheap)
        singles = [forecast for forecast in forecasts if len(forecast.exit_layers) == 1]
        best = max(singles, key=lambda forecast: forecast.speedup).exit_layers[0]
        vocabularies = self._vocabularies(forecaster, best, sizes)
        size = max(vocabularies, key=lambda size: vocabularies[size][1])
        ranked = sorted(forecasts, key=lambda forecast: forecast.speedup, reverse=True)
        chosen = ranked[: self._options.num_candidates]
        candidates = [
            _candidate(forecaster, cheap, forecast, timed)
            for forecast, timed in zip(chosen, self._timed(chosen, size), strict=True)
        ]
        return SearchResult(
            exit_layers=max(candidates, key=lambda each: each.measured).exit_layers,
            vocabulary_size=size,
            curves=[self._curve(cheap, single) for single in singles],
            vocabularies=vocabularies,
            candidates=candidates,
        )

    def _costs(self, sizes: Sequence[int]) -> PartCosts:
        """Measured once: forecasts of different runs must agree."""
        path = self._work / "costs.json"
        raw = read_json(path)
        if raw is None:
            costs = measure_costs(self._decoder, sizes)
            write_json(path, asdict(costs))
            return costs
        return PartCosts.from_json(raw)

    def _sizes(self) -> list[int]:
        most = self._decoder.spec.vocab_size
        if self._options.vocabulary_size is not None:
            return [min(self._options.vocabulary_size, most)]
        return [size for size in VOCABULARY_SIZES if size < most] or [most]

    def _factory(self, size: int) -> HeadFactory:
        ids, _ = reduced_vocabulary(self._sample.training, size)
        return HeadFactory(self._decoder, ids, self._max_bytes)

    def _cheap_heads(self, size: int) -> "_CheapHeads":
        """Fitted at every layer."""
        factory = self._factory(size)
        layers = range(1, self._decoder.spec.num_layers)
        opinions: dict[int, Opinions] = {}
        name, total = "cheap heads", len(layers)
        with ProgressReport(name, total, "layers") as report, torch_threads(self._model):
            for layer in layers:
                path = self._work / f"opinions-{layer}.safetensors"
                if path.is_file():
                    opinions[layer] = Opinions(**load_file(str(path)))
                else:
                    opinions[layer] = self._opinions(factory, layer)
                    partial = path.with_suffix(".partial")
                    save_file(asdict(opinions[layer]), str(partial))
                    partial.replace(path)
                report.update(layer)
        return _CheapHeads.of(opinions, self._texts.states, size)

    def _opinions(self, factory: HeadFactory, layer: int) -> Opinions:
        head = factory.fitted(factory.shards(self._fit_paths, layer))
        return form_opinions(head, self._texts.at(layer), factory.token_ids)

    def _curve(self, cheap: "_CheapHeads", single: Forecast) -> LayerCurve:
        [layer] = single.exit_layers
        agreement = cheap.opinions[layer].agreement(self._texts.states)
        return LayerCurve(
            layer=layer,
            agreement=[round(share, 4) for share in agreement],
            calibration=cheap.calibration[layer],
            speedup=single.speedup,
        )

    def _vocabularies(
        self, forecaster: "_Forecaster", layer: int, sizes: Sequence[int]
    ) -> dict[int, tuple[float, float]]:
        """Coverage and forecast of every size, with an exit at `layer`."""
        found = {}
        for size in sizes:
            with torch_threads(self._model):
                opinions = {layer: self._opinions(self._factory(size), layer)}
            cheap = _CheapHeads.of(opinions, self._texts.states, size)
            speedup = forecaster.forecast([layer], cheap).speedup
            _, covered = reduced_vocabulary(self._sample.training, size)
            found[size] = (round(covered, 4), speedup)
            logger.info("vocabulary of %d: covers %.3f, %.3fx", size, covered, speedup)
        return found

    def _timed(self, forecasts: Sequence[Forecast], size: int) -> list[TimedRuns]:
        """Runs of heads trained on the sample."""
        sample, factory = self._sample, self._factory(size)
        config = TrainingConfig(epochs=self._options.epochs)
        heads, figures = {}, {}
        with torch_threads(self._model):
            for layer in sorted({layer for each in forecasts for layer in each.exit_layers}):
                shards = factory.shards(sample.training_paths, layer)
                heads[layer] = factory.trained(f"candidate-{layer}", shards, config, self._work)
                held_out = factory.shards(sample.held_out_paths, layer)
                figures[layer] = evaluate_head(heads[layer], held_out, factory.token_ids)
        directories = {}
        for forecast in forecasts:
            layers = forecast.exit_layers
            directory = self._work / ("exits-" + "-".join(map(str, layers)))
            write_heads(
                directory,
                {layer: heads[layer] for layer in layers},
                {layer: figures[layer] for layer in layers},
                factory.token_ids,
                model_facts("", self._decoder),
            )
            directories[directory.name] = directory
        prompts = choose_prompts([*sample.held_out, *sample.training], _TIMED_PROMPTS)
        stopwatch = Stopwatch(self._model, self._decoder, prompts, _TIMED_LENGTH)
        runs = stopwatch.run(directories)
        for name, timed in runs.items():
            logger.info("%s: %.3fx measured", name, timed.speedup)
        return list(runs.values())


@dataclass(frozen=True, slots=True)
class _CheapHeads:
    """What heads that nobody has trained expect, by exit layer."""

    opinions: Mapping[int, Opinions]
    calibration: Mapping[int, Calibration]
    vocabulary_size: int

    @classmethod
    def of(cls, opinions: Mapping[int, Opinions], states: HiddenStates, size: int) -> "_CheapHeads":
        """Calibrated on the texts themselves."""
        return cls(opinions, {n: each.calibration(states) for n, each in opinions.items()}, size)


class _Forecaster:
    """Forecasts with the costs of this machine; each is made once."""

    def __init__(self, replay: Replay, costs: PartCosts, work: Path) -> None:
        self._replay = replay
        self._costs = costs
        self._path = work / "forecasts.json"
        self._speedups: dict[str, float] = read_json(self._path) or {}

    def forecast(
        self, exit_layers: Sequence[int], cheap: _CheapHeads, threshold: float | None = None
    ) -> Forecast:
        """Of exits at some of the layers that have heads."""
        layers, size = list(exit_layers), cheap.vocabulary_size
        name = f"exits {layers}, {size} tokens, threshold {threshold}"
        if name in self._speedups:
            speedup = self._speedups[name]
            return Forecast(exit_layers=layers, threshold=threshold, speedup=speedup)
        forecast = self._replay.forecast(
            {layer: cheap.opinions[layer] for layer in layers},
            {layer: cheap.calibration[layer] for layer in layers},
            self._costs.model(layers, size),
            self._costs.model([], size).plain(1),
            threshold,
        )
        self._speedups[name] = forecast.speedup
        write_json(self._path, self._speedups)
        return forecast


def _all_forecasts(forecaster: _Forecaster, cheap: _CheapHeads) -> list[Forecast]:
    """Of every single exit, and of pairs that begin with one of the best."""
    layers = list(cheap.opinions)
    with ProgressReport("forecasts", len(layers), "choices") as report:
        forecasts: list[Forecast] = []
        for layer in layers:
            forecasts.append(forecaster.forecast([layer], cheap))
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
            forecasts.append(forecaster.forecast(pair, cheap))
            report.update(len(forecasts))
    return forecasts


def _candidate(
    forecaster: _Forecaster, cheap: _CheapHeads, forecast: Forecast, timed: TimedRuns
) -> Candidate:
    """With the best of some fixed thresholds."""
    fixed = [
        (forecaster.forecast(forecast.exit_layers, cheap, threshold).speedup, threshold)
        for threshold in _THRESHOLDS
    ]
    speedup, threshold = max(fixed)
    return Candidate(
        exit_layers=forecast.exit_layers,
        forecast=forecast.speedup,
        threshold=threshold,
        threshold_forecast=speedup,
        measured_alone=timed.speedup_alone,
        measured=timed.speedup,
    )


def _spread(values: Sequence[int], count: int) -> list[int]:
    """At most so many of them, evenly spaced, the first included."""
    step = max(1, -(-len(values) // count))
    return list(values[::step])


def choose_sample(rows: Sequence[Generation], num_tokens: int) -> list[Generation]:
    """The first generations that have so many tokens."""
    ends = list(accumulate(len(row.output_ids) for row in rows))
    return list(rows[: bisect_left(ends, num_tokens) + 1])


def choose_prompts(rows: Sequence[Generation], count: int) -> list[list[int]]:
    """Prompts of different tasks, as far as there are any."""
    by_task: dict[str, list[list[int]]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row.prompt_ids)
    turns = zip_longest(*by_task.values())
    picked = [prompt for turn in turns for prompt in turn if prompt is not None]
    return picked[:count]
