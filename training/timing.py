"""Times the engine with heads against plain decoding, in turns on the same prompts, one stream."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.model.decoder import Decoder
from engine.offline import GenerationResult
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams
from training.engines import MODELLED, Engines, TimedEngine, Traffic
from training.heads_file import Facts, read_facts
from training.progress import ProgressReport

logger = logging.getLogger(__name__)

_CACHE_BYTES = 64 << 20
_PLAIN = EarlyExitOptions(enabled=False)
_WHOLE = EarlyExitOptions(return_trace=True)
_ALONE = EarlyExitOptions(lookup=False)
_GREEDY, _SAMPLED = 0.0, 0.8
# Choices with this share of the best speed-up count as equal: other prompts may reverse them.
_AS_GOOD = 0.98


@dataclass(frozen=True, slots=True, kw_only=True)
class Timekeeping:
    """The clock that heads are timed by."""

    clock: str = MODELLED
    costs: Path | None = None  # file of the modelled clock's costs, written if it does not exist

    def engines(
        self, config: EngineConfig, decoder: Decoder, prompts: Sequence[Sequence[int]], work: Path
    ) -> Engines:
        """Return a maker of engines that share the weights and go by this clock.

        Args:
            prompts: Token ids of prompts that costs are measured with.
            work: Directory for measured costs, unless `costs` names a file.

        Raises:
            ValueError: if costs are given for another clock, or the file holds no costs.
        """
        costs = self.costs
        if self.clock == MODELLED and costs is None:
            costs = work / "step-costs.json"
        traffic = Traffic(prompts=prompts, temperature=_GREEDY)
        return Engines(config, clock=self.clock, costs=costs, traffic=traffic, decoder=decoder)


class Compared(Protocol):
    """A choice of exits that was measured."""

    @property
    def exit_layers(self) -> list[int]:
        """The exit layers."""

    @property
    def measured(self) -> float:
        """The speed-up over plain decoding."""


Choice = TypeVar("Choice", bound=Compared)


def best_first(choices: Sequence[Choice]) -> list[Choice]:
    """Sort choices by speed-up, but prefer fewer exits among those that are nearly the fastest.

    Each exit takes memory, training, and time at every start.
    """
    least = _AS_GOOD * max(choice.measured for choice in choices)

    def rank(choice: Choice) -> tuple[bool, int, float]:
        is_worse = choice.measured < least
        return (is_worse, 0 if is_worse else len(choice.exit_layers), -choice.measured)

    return sorted(choices, key=rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRuns:
    """The timed runs of one choice of heads, compared with plain decoding."""

    speedups: Mapping[str, float]  # by temperature: mean ratio of plain decoding's time to theirs
    speedup_alone: float  # greedy, without prompt look-up
    num_changed: int  # outputs that differ from plain decoding's; the contract is 0
    results: Sequence[GenerationResult]  # by temperature and prompt, with traces

    @property
    def speedup(self) -> float:
        """The mean speed-up over temperatures."""
        return round(sum(self.speedups.values()) / len(self.speedups), 4)


@dataclass(frozen=True, slots=True)
class _Run:
    """The timed run of one prompt."""

    result: GenerationResult
    seconds: float


@dataclass(slots=True)
class _Tally:
    """The speed-ups of one choice of heads, prompt by prompt."""

    whole: dict[float, list[float]] = field(default_factory=dict)  # by temperature
    alone: list[float] = field(default_factory=list)  # without prompt look-up
    results: list[GenerationResult] = field(default_factory=list)
    num_changed: int = 0

    def add(self, temperature: float, plain: _Run, whole: _Run) -> None:
        """Add the runs of one prompt."""
        self.whole.setdefault(temperature, []).append(plain.seconds / whole.seconds)
        self.results.append(whole.result)
        self.num_changed += plain.result.token_ids != whole.result.token_ids

    def add_alone(self, plain: _Run, alone: _Run) -> None:
        """Add the runs of one prompt without prompt look-up."""
        self.alone.append(plain.seconds / alone.seconds)
        self.num_changed += plain.result.token_ids != alone.result.token_ids

    def sum_up(self) -> TimedRuns:
        """Return the means over all prompts."""
        return TimedRuns(
            speedups={f"{t:g}": _mean(ratios) for t, ratios in self.whole.items()},
            speedup_alone=_mean(self.alone),
            num_changed=self.num_changed,
            results=self.results,
        )


class Stopwatch:
    """Times heads of one model in a single stream, prefill included."""

    def __init__(
        self,
        model: ModelConfig,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        length: int,
        timekeeping: Timekeeping,
        work: Path,
    ) -> None:
        """
        Args:
            length: Output tokens per prompt.
            work: Directory for measured costs, unless `timekeeping` names a file.
        """
        config = EngineConfig(
            model=model,
            cache=CacheConfig(kv_cache_memory_bytes=_CACHE_BYTES),
            scheduler=SchedulerConfig(max_num_seqs=1, prefix_caching=False),
            worker="inline",
        )
        self._engines = timekeeping.engines(config, decoder, prompts, work)
        self._prompts = prompts
        self._length = length

    def compare(self, candidates: Mapping[str, Path]) -> dict[str, TimedRuns]:
        """Time directories of heads, given by name, with greedy and with sampled decoding."""
        return self._run(candidates, (_GREEDY, _SAMPLED))

    def time_greedy(self, heads: Path) -> TimedRuns:
        """Time one directory of heads with greedy decoding only."""
        [timed] = self._run({"early exits": heads}, (_GREEDY,)).values()
        return timed

    @property
    def rule(self) -> Facts:
        """How `compare` decides which heads are faster, for people to read."""
        return {
            "compared_by": f"mean speed-up at temperatures {_GREEDY:g} and {_SAMPLED:g}, one "
            f"stream, {len(self._prompts)} prompts of {self._length} tokens",
            "preferred": f"fewer exits, where that loses less than {1.0 - _AS_GOOD:.0%}",
            **self._engines.settings,
        }

    def _run(
        self, candidates: Mapping[str, Path], temperatures: Sequence[float]
    ) -> dict[str, TimedRuns]:
        # The first engine made measures the costs, which is best done with a long last segment.
        order = sorted(
            candidates, key=lambda name: max(read_facts(candidates[name])["exit_layers"])
        )
        made = {name: self._engines.make(ExitsConfig(heads=candidates[name])) for name in order}
        engines = {name: made[name] for name in candidates}
        tallies = {name: _Tally() for name in engines}
        turns = [(t, index) for t in temperatures for index in range(len(self._prompts))]
        with ProgressReport("timed runs", len(turns), "prompts") as report:
            for number, (temperature, index) in enumerate(turns):
                if index == 0:  # warm up: not counted
                    for engine in engines.values():
                        self._generate(engine, index, temperature, _WHOLE)
                plain = self._generate(next(iter(engines.values())), index, temperature, _PLAIN)
                for name in _turned(list(engines), number):
                    if temperature == _GREEDY:
                        alone = self._generate(engines[name], index, temperature, _ALONE)
                        tallies[name].add_alone(plain, alone)
                    whole = self._generate(engines[name], index, temperature, _WHOLE)
                    tallies[name].add(temperature, plain, whole)
                report.update(number + 1)
        runs = {name: tally.sum_up() for name, tally in tallies.items()}
        for name, timed in runs.items():
            logger.info("%s: %.3fx plain decoding", name, timed.speedup)
        return runs

    def _generate(
        self, timed: TimedEngine, index: int, temperature: float, early_exit: EarlyExitOptions
    ) -> _Run:
        request = GenerationRequest(
            request_id=str(index),
            prompt_token_ids=tuple(self._prompts[index]),
            sampling=SamplingParams(temperature=temperature, seed=index, max_tokens=self._length),
            early_exit=early_exit,
        )
        started = timed.clock()
        [result] = timed.engine.generate([request])
        return _Run(result, timed.clock() - started)


def _turned(names: Sequence[str], number: int) -> Sequence[str]:
    """Return the names rotated by `number`, so that each of them comes first in turn."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
