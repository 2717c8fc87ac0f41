"""`heads search`: which exits of heads that were trained elsewhere pay on this machine.

    heads at many layers → what each expects of new text → forecasts of every exit and of pairs,
    with the measured costs of segments and heads → timed runs of the best few → the fastest

The parts are `search`'s, but nothing is trained, and the model is the one that is served: with its
weights in blocks, where it has them.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.exit_head import Calibration
from training.collect import ShardPaths
from training.costs import PartCosts, kept_costs
from training.forecasts import CalibratedOpinions, Forecaster, all_forecasts
from training.generations import Generation, choose_prompts
from training.head_factory import HeadFactory
from training.heads_file import Facts, read_facts, read_vocabulary, write_chosen
from training.replay import Forecast, Replay, form_opinions
from training.texts import GreedyTexts
from training.threads import torch_threads
from training.timing import Stopwatch, TimedRuns

logger = logging.getLogger(__name__)

_TIMED_PROMPTS, _TIMED_LENGTH = 12, 96


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedExits:
    """A choice of exits that was timed."""

    exit_layers: list[int]
    forecast: float  # without look-ups
    measured_alone: float  # without look-ups
    measured: float  # with them


class Selection:
    """Chooses among the exits of one directory of heads."""

    def __init__(
        self,
        model: ModelConfig,
        decoder: Decoder,
        heads: Path,
        rows: Sequence[Generation],
        paths: ShardPaths,
        work: Path,
        max_bytes: int,
    ) -> None:
        """Args:
        rows: Answers that the forecasts are made on.
        paths: Their states at all exits of the heads.
        work: Forecasts are kept there, for these heads and answers.
        """
        self._model = model
        self._decoder = decoder
        self._heads = heads
        self._facts = read_facts(heads)
        self._rows = rows
        self._texts = GreedyTexts(rows, paths)
        self._factory = HeadFactory(decoder, read_vocabulary(heads).tolist(), max_bytes)
        names = [str(path) for shard in paths for path in shard.values()]
        facts = (heads / "heads.json").read_text() + "\n".join(names)
        self._work = work / f"selection-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        self._work.mkdir(parents=True, exist_ok=True)

    def run(self, num_candidates: int) -> list[TimedExits]:
        """Time the most promising choices; the fastest comes first."""
        heads = self._opinions()
        costs = self._costs(heads.vocabulary_size)
        replay = Replay(self._decoder.spec, self._texts.states)
        forecasts = all_forecasts(Forecaster(replay, costs, self._work), heads)
        ranked = sorted(forecasts, key=lambda each: each.speedup, reverse=True)
        for forecast in ranked:
            logger.info("exits %s: %.3fx forecast", forecast.exit_layers, forecast.speedup)
        chosen = _promising(ranked, num_candidates)
        timed = [
            TimedExits(
                exit_layers=forecast.exit_layers,
                forecast=forecast.speedup,
                measured_alone=runs.speedup_alone,
                measured=runs.speedup,
            )
            for forecast, runs in zip(chosen, self._timed(chosen), strict=True)
        ]
        return sorted(timed, key=lambda each: each.measured, reverse=True)

    def write(self, timed: Sequence[TimedExits], output: Path) -> None:
        """The heads at the fastest choice's exits, and what it was chosen from."""
        search: Facts = {"chosen_from": sorted(self._facts["exit_layers"])}
        search["candidates"] = [asdict(each) for each in timed]
        write_chosen(self._heads, timed[0].exit_layers, output, {"search": search})

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

    def _timed(self, forecasts: Sequence[Forecast]) -> list[TimedRuns]:
        directories = {}
        for forecast in forecasts:
            layers = forecast.exit_layers
            directory = self._work / ("exits-" + "-".join(map(str, layers)))
            write_chosen(self._heads, layers, directory, {})
            directories[directory.name] = directory
        prompts = choose_prompts(self._rows, _TIMED_PROMPTS)
        stopwatch = Stopwatch(self._model, self._decoder, prompts, _TIMED_LENGTH)
        return list(stopwatch.run(directories).values())


def _promising(ranked: Sequence[Forecast], count: int) -> list[Forecast]:
    """The best of them, the best single exit included: a second one seldom costs what it should."""
    single = next(forecast for forecast in ranked if len(forecast.exit_layers) == 1)
    best = list(ranked[:count])
    return best if single in best else [*best[: count - 1], single]
