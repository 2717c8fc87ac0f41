"""Heads at work: the engine with and without them, turn by turn on the same prompts, one stream."""

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
_AS_GOOD = 0.98  # of the best speed-up: other prompts may turn it round


@dataclass(frozen=True, slots=True, kw_only=True)
class Timekeeping:
    """What tells how fast heads are."""

    clock: str = MODELLED
    costs: Path | None = None  # that the modelled clock goes by, or where they are to be kept

    def engines(
        self, config: EngineConfig, decoder: Decoder, prompts: Sequence[Sequence[int]], work: Path
    ) -> Engines:
        """On one copy of the weights.

        Args:
            prompts: Token ids, served to measure costs with.
            work: Where measured costs are kept, unless there is another place for them.

        Raises:
            ValueError: if costs are given to another clock, or they are none.
        """
        costs = self.costs
        if self.clock == MODELLED and costs is None:
            costs = work / "step-costs.json"
        traffic = Traffic(prompts=prompts, temperature=_GREEDY)
        return Engines(config, clock=self.clock, costs=costs, traffic=traffic, decoder=decoder)


class Compared(Protocol):
    """A choice of exits."""

    @property
    def exit_layers(self) -> list[int]:
        """In ascending order."""

    @property
    def measured(self) -> float:
        """Its speed-up."""


Choice = TypeVar("Choice", bound=Compared)


def best_first(choices: Sequence[Choice]) -> list[Choice]:
    """The fastest first, but before it those that are as good with fewer exits: each exit takes
    memory, training, and time at every start.
    """
    least = _AS_GOOD * max(choice.measured for choice in choices)

    def rank(choice: Choice) -> tuple[bool, int, float]:
        is_worse = choice.measured < least
        return (is_worse, 0 if is_worse else len(choice.exit_layers), -choice.measured)

    return sorted(choices, key=rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRuns:
    """One choice of heads against plain decoding."""

    speedups: Mapping[str, float]  # by temperature: mean over prompts of plain's time over theirs
    speedup_alone: float  # greedy, without look-ups
    num_changed: int  # outputs that differ from plain decoding's: none, by contract
    results: Sequence[GenerationResult]  # by prompt, with traces

    @property
    def speedup(self) -> float:
        """All temperatures count alike."""
        return round(sum(self.speedups.values()) / len(self.speedups), 4)


@dataclass(frozen=True, slots=True)
class _Run:
    """One prompt's."""

    result: GenerationResult
    seconds: float


@dataclass(slots=True)
class _Tally:
    """One choice of heads, prompt by prompt."""

    whole: dict[float, list[float]] = field(default_factory=dict)  # by temperature
    alone: list[float] = field(default_factory=list)
    results: list[GenerationResult] = field(default_factory=list)
    num_changed: int = 0

    def add(self, temperature: float, plain: _Run, whole: _Run) -> None:
        """One more prompt."""
        self.whole.setdefault(temperature, []).append(plain.seconds / whole.seconds)
        self.results.append(whole.result)
        self.num_changed += plain.result.token_ids != whole.result.token_ids

    def add_alone(self, plain: _Run, alone: _Run) -> None:
        """The same prompt without look-ups."""
        self.alone.append(plain.seconds / alone.seconds)
        self.num_changed += plain.result.token_ids != alone.result.token_ids

    def sum_up(self) -> TimedRuns:
        """All prompts count alike."""
        return TimedRuns(
            speedups={f"{t:g}": _mean(ratios) for t, ratios in self.whole.items()},
            speedup_alone=_mean(self.alone),
            num_changed=self.num_changed,
            results=self.results,
        )


class Stopwatch:
    """Times heads of one model, one stream, prompts included."""

    def __init__(
        self,
        model: ModelConfig,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        length: int,
        timekeeping: Timekeeping,
        work: Path,
    ) -> None:
        """Args:
        length: Output tokens per prompt.
        work: Where costs are kept that are measured.
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
        """Directories of heads by name: greedy and sampled."""
        return self._run(candidates, (_GREEDY, _SAMPLED))

    def time_greedy(self, heads: Path) -> TimedRuns:
        """One directory of heads, greedy only."""
        [timed] = self._run({"early exits": heads}, (_GREEDY,)).values()
        return timed

    @property
    def rule(self) -> Facts:
        """What `compare` tells the faster ones by, for people."""
        return {
            "compared_by": f"mean speed-up at temperatures {_GREEDY:g} and {_SAMPLED:g}, one "
            f"stream, {len(self._prompts)} prompts of {self._length} tokens",
            "preferred": f"fewer exits, where that loses less than {1.0 - _AS_GOOD:.0%}",
            **self._engines.settings,
        }

    def _run(
        self, candidates: Mapping[str, Path], temperatures: Sequence[float]
    ) -> dict[str, TimedRuns]:
        # Costs are measured with the first one made: the longer its last segment, the better.
        order = sorted(
            candidates, key=lambda name: max(read_facts(candidates[name])["exit_layers"])
        )
        made = {name: self._engines.make(ExitsConfig(heads=candidates[name])) for name in order}
        engines = {name: made[name] for name in candidates}
        tallies = {name: _Tally() for name in engines}
        turns = [(t, index) for t in temperatures for index in range(len(self._prompts))]
        with ProgressReport("timed runs", len(turns), "prompts") as report:
            for number, (temperature, index) in enumerate(turns):
                if index == 0:  # not counted
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
    """Beginning with another one every time."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4)
