"""Chooses, for `heads search`, the exits of already trained heads that are fastest on this machine.

1. Record what the heads at all their layers expect of new text.
2. Forecast the speed-up of every exit and of pairs, with the measured costs of segments and heads.
3. Run the engine with each of the best few, timed by default by one set of step costs; the fastest
   wins.

The parts are those of `search`, but nothing is trained, and the model is the one that is served:
with quantized blocks as weights where it has them.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.model.decoder import Decoder
from engine.model.exit_head import Calibration
from training.collect import ShardPaths
from training.costs import PartCosts, kept_costs
from training.forecasts import CalibratedOpinions, Forecaster, all_forecasts
from training.generate import GenerationOptions
from training.generations import Generation, choose_prompts
from training.head_factory import HeadFactory
from training.heads_file import Facts, read_facts, read_vocabulary, write_chosen
from training.replay import Forecast, Replay, form_opinions
from training.texts import GreedyTexts
from training.threads import torch_threads
from training.timing import Stopwatch, TimedRuns, Timekeeping, best_first

logger = logging.getLogger(__name__)

_TIMED_PROMPTS, _TIMED_LENGTH = 12, 96


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedExits:
    """A choice of exits that was compared with others."""

    exit_layers: list[int]
    forecast: float  # speed-up, greedy, without prompt look-up
    measured_alone: float  # speed-up, greedy, without prompt look-up
    measured_by_temperature: dict[str, float]  # speed-ups with prompt look-up
    measured: float  # the mean of `measured_by_temperature`, which decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All choices of exits that were compared."""

    exits: list[TimedExits]  # the preferred one first
    rule: Facts  # how they were compared, for people


class Selection:
    """Chooses among the exits of one directory of heads."""

    def __init__(
        self,
        generation: GenerationOptions,
        decoder: Decoder,
        heads: Path,
        rows: Sequence[Generation],
        paths: ShardPaths,
    ) -> None:
        """
        Args:
            generation: Options; forecasts and costs of these heads and answers are kept in its
                work directory.
            rows: Answers that the forecasts are made on.
            paths: Their states at all exits of the heads.
        """
        self._model = generation.model
        self._decoder = decoder
        self._heads = heads
        self._facts = read_facts(heads)
        self._rows = rows
        self._texts = GreedyTexts(rows, paths)
        vocabulary = read_vocabulary(heads).tolist()
        self._factory = HeadFactory(decoder, vocabulary, generation.max_bytes)
        names = [str(path) for shard in paths for path in shard.values()]
        facts = (heads / "heads.json").read_text() + "\n".join(names)
        key = hashlib.sha256(facts.encode()).hexdigest()[:12]
        self._work = generation.work / f"selection-{key}"
        self._work.mkdir(parents=True, exist_ok=True)

    def run(self, num_candidates: int, timekeeping: Timekeeping) -> Comparison:
        """Compare the most promising choices.

        Raises:
            ValueError: if the costs given were measured with another model, or there are none.
        """
        prompts = choose_prompts(self._rows, _TIMED_PROMPTS)
        stopwatch = Stopwatch(
            self._model, self._decoder, prompts, _TIMED_LENGTH, timekeeping, self._work
        )
        chosen = _promising(self._ranked(), num_candidates)
        directories = [self._written(forecast.exit_layers) for forecast in chosen]
        runs = stopwatch.compare({directory.name: directory for directory in directories})
        timed = [
            _timed(forecast, runs[directory.name])
            for forecast, directory in zip(chosen, directories, strict=True)
        ]
        return Comparison(exits=best_first(timed), rule=stopwatch.rule)

    def write(self, found: Comparison, output: Path) -> None:
        """Write the heads at the preferred exits, with all that they were compared with."""
        search: Facts = {"chosen_from": sorted(self._facts["exit_layers"]), **found.rule}
        search["candidates"] = [asdict(each) for each in found.exits]
        write_chosen(self._heads, found.exits[0].exit_layers, output, {"search": search})

    def _ranked(self) -> list[Forecast]:
        """Return the forecasts of all choices of exits, best first."""
        heads = self._opinions()
        costs = self._costs(heads.vocabulary_size)
        replay = Replay(self._decoder.spec, self._texts.states)
        forecasts = all_forecasts(Forecaster(replay, costs, self._work), heads)
        ranked = sorted(forecasts, key=lambda each: each.speedup, reverse=True)
        for forecast in ranked:
            logger.info("exits %s: %.3fx forecast", forecast.exit_layers, forecast.speedup)
        return ranked

    def _opinions(self) -> CalibratedOpinions:
        factory = self._factory
        with torch_threads(self._model):
            opinions = {
                layer: form_opinions(
                    factory.loaded(self._heads, layer), self._texts.at(layer), factory.token_ids
                )
                for layer in self._facts["exit_layers"]
            }
        calibration = {
            layer: Calibration(**self._facts["calibration"][str(layer)]) for layer in opinions
        }
        return CalibratedOpinions(opinions, calibration, len(factory.token_ids))

    def _costs(self, size: int) -> PartCosts:
        refinement_size = max(self._facts.get("refinement_sizes", {"": 0}).values())
        return kept_costs(self._work / "costs.json", self._decoder, [size], refinement_size)

    def _written(self, exit_layers: Sequence[int]) -> Path:
        """Write a directory with the heads at some of the exits."""
        directory = self._work / ("exits-" + "-".join(map(str, exit_layers)))
        write_chosen(self._heads, exit_layers, directory, {})
        return directory


def _timed(forecast: Forecast, runs: TimedRuns) -> TimedExits:
    return TimedExits(
        exit_layers=forecast.exit_layers,
        forecast=forecast.speedup,
        measured_alone=runs.speedup_alone,
        measured_by_temperature=dict(runs.speedups),
        measured=runs.speedup,
    )


def _promising(ranked: Sequence[Forecast], count: int) -> list[Forecast]:
    """Return the best forecasts, always with the best single exit among them.

    What a second exit costs is often not what was forecast.
    """
    single = next(forecast for forecast in ranked if len(forecast.exit_layers) == 1)
    best = list(ranked[:count])
    return best if single in best else [*best[: count - 1], single]
