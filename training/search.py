"""Finds the best exits, and the size of the reduced vocabulary, for `heads train --search`.

It works on a sample of the model's output, with the states at every layer:

1. Fit cheap heads at every layer by ridge regression, and record what they expect.
2. Forecast the speed-up of every exit and of pairs, with the measured costs of segments and heads.
3. Train heads for the best few choices on the sample.
4. Run the engine with each of them, timed by default by one set of step costs; the fastest wins.

Forecasts are the policy's own (see `replay`). Every stage leaves files, so a killed run resumes.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file

from engine.config import ModelConfig
from engine.model.decoder import Decoder
from training.collect import ShardPaths
from training.costs import PartCosts, kept_costs
from training.evaluate import evaluate_head
from training.forecasts import CalibratedOpinions, Forecaster, all_forecasts
from training.generations import Generation, choose_prompts, coverage, reduced_vocabulary
from training.head_factory import HeadFactory
from training.heads_file import model_facts, write_heads
from training.progress import ProgressReport
from training.replay import Forecast, Opinions, Replay, form_opinions
from training.search_result import Candidate, LayerCurve, SearchResult
from training.states import ROWS_PER_SHARD
from training.tensor_file import write_tensors
from training.texts import GreedyTexts
from training.threads import torch_threads
from training.timing import Stopwatch, TimedRuns, Timekeeping, best_first
from training.train_head import TrainingConfig

logger = logging.getLogger(__name__)

_VOCABULARY_SIZES = (2048, 4096, 8192, 16384)
_FIRST_SIZE = 4096  # reduced vocabulary with which exits are compared
_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_FIT_SHARE = 0.75  # share of the sample's shards that heads are fitted on; the rest is replayed
_TIMED_PROMPTS, _TIMED_LENGTH = 8, 96


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """The options of a search."""

    num_tokens: int  # size of the sample
    num_candidates: int = 3  # choices of exits that are trained and compared
    epochs: int = 2
    vocabulary_size: int | None = None  # None: searched for, too
    refinement_size: int = 0  # of the heads that are trained and compared; 0: linear ones
    timekeeping: Timekeeping = Timekeeping()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The text of a search: generations, and their states at every layer."""

    training: Sequence[Generation]
    held_out: Sequence[Generation]
    training_paths: ShardPaths
    held_out_paths: ShardPaths


class Search:
    """One search for the exits of a model."""

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
        self._texts = GreedyTexts(  # texts that no cheap head is fitted on
            [*sample.training[num_fit * ROWS_PER_SHARD :], *sample.held_out],
            [*sample.training_paths[num_fit:], *sample.held_out_paths],
        )
        work.mkdir(parents=True, exist_ok=True)

    def run(self) -> SearchResult:
        """Find exits, and the size of the reduced vocabulary."""
        sizes = self._sizes()
        forecaster = Forecaster(
            Replay(self._decoder.spec, self._texts.states), self._costs(sizes), self._work
        )
        first_size = min(sizes, key=lambda size: abs(size - _FIRST_SIZE))
        cheap = self._cheap_heads(first_size)
        forecasts = all_forecasts(forecaster, cheap)
        singles = [forecast for forecast in forecasts if len(forecast.exit_layers) == 1]
        best = max(singles, key=lambda forecast: forecast.speedup).exit_layers[0]
        vocabularies = self._vocabularies(forecaster, best, sizes)
        size = max(vocabularies, key=lambda size: vocabularies[size][1])
        ranked = sorted(forecasts, key=lambda forecast: forecast.speedup, reverse=True)
        chosen = ranked[: self._options.num_candidates]
        directories = self._trained(chosen, size)
        stopwatch = self._stopwatch()
        timed = stopwatch.compare(directories)
        candidates = [
            _candidate(forecaster, cheap, forecast, timed[name])
            for forecast, name in zip(chosen, directories, strict=True)
        ]
        return SearchResult(
            exit_layers=best_first(candidates)[0].exit_layers,
            vocabulary_size=size,
            curves=[self._curve(cheap, single) for single in singles],
            vocabularies=vocabularies,
            candidates=candidates,
            rule=stopwatch.rule,
        )

    def _costs(self, sizes: Sequence[int]) -> PartCosts:
        size = self._options.refinement_size
        return kept_costs(self._work / "costs.json", self._decoder, sizes, size)

    def _sizes(self) -> list[int]:
        most = self._decoder.spec.vocab_size
        if self._options.vocabulary_size is not None:
            return [min(self._options.vocabulary_size, most)]
        return [size for size in _VOCABULARY_SIZES if size < most] or [most]

    def _factory(self, size: int) -> HeadFactory:
        ids = reduced_vocabulary(self._sample.training, size)
        return HeadFactory(self._decoder, ids, self._max_bytes)

    def _cheap_heads(self, size: int) -> CalibratedOpinions:
        """Fit a head at every layer, and return their opinions."""
        factory = self._factory(size)
        layers = range(self._decoder.spec.num_layers)
        opinions: dict[int, Opinions] = {}
        name, total = "cheap heads", len(layers)
        with ProgressReport(name, total, "layers") as report, torch_threads(self._model):
            for layer in layers:
                path = self._work / f"opinions-{layer}.safetensors"
                if path.is_file():
                    opinions[layer] = Opinions(**load_file(str(path)))
                else:
                    opinions[layer] = self._opinions(factory, layer)
                    write_tensors(path, asdict(opinions[layer]))
                report.update(layer + 1)
        return CalibratedOpinions.of(opinions, self._texts.states, size)

    def _opinions(self, factory: HeadFactory, layer: int) -> Opinions:
        head = factory.fitted(factory.shards(self._fit_paths, layer))
        return form_opinions(head, self._texts.at(layer), factory.token_ids)

    def _curve(self, cheap: CalibratedOpinions, single: Forecast) -> LayerCurve:
        [layer] = single.exit_layers
        agreement = cheap.opinions[layer].agreement(self._texts.states)
        return LayerCurve(
            layer=layer,
            agreement=[round(share, 4) for share in agreement],
            calibration=cheap.calibration[layer],
            speedup=single.speedup,
        )

    def _vocabularies(
        self, forecaster: Forecaster, layer: int, sizes: Sequence[int]
    ) -> dict[int, tuple[float, float]]:
        """Return the coverage and the forecast of every size, with an exit at `layer`."""
        found = {}
        for size in sizes:
            with torch_threads(self._model):
                opinions = {layer: self._opinions(self._factory(size), layer)}
            cheap = CalibratedOpinions.of(opinions, self._texts.states, size)
            speedup = forecaster.forecast([layer], cheap).speedup
            training = self._sample.training
            covered = coverage(training, reduced_vocabulary(training, size))
            found[size] = (round(covered, 4), speedup)
            logger.info("vocabulary of %d: covers %.3f, %.3fx", size, covered, speedup)
        return found

    def _trained(self, forecasts: Sequence[Forecast], size: int) -> dict[str, Path]:
        """Train heads on the sample, and write a directory for every choice of exits.

        Returns:
            The directories by their names.
        """
        sample, factory = self._sample, self._factory(size)
        config = TrainingConfig(
            epochs=self._options.epochs, refinement_size=self._options.refinement_size
        )
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
        return directories

    def _stopwatch(self) -> Stopwatch:
        rows = [*self._sample.held_out, *self._sample.training]
        return Stopwatch(
            self._model,
            self._decoder,
            choose_prompts(rows, _TIMED_PROMPTS),
            _TIMED_LENGTH,
            self._options.timekeeping,
            self._work,
        )


def _candidate(
    forecaster: Forecaster, cheap: CalibratedOpinions, forecast: Forecast, timed: TimedRuns
) -> Candidate:
    """Describe a compared choice, with the forecast of its best fixed threshold."""
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
        measured_by_temperature=dict(timed.speedups),
        measured=timed.speedup,
    )
