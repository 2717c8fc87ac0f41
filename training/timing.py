"""Heads at work: the engine with and without them, turn by turn on the same prompts."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.model.decoder import Decoder
from engine.offline import GenerationResult, OfflineEngine
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams
from engine.worker.worker import ModelWorker
from training.progress import ProgressReport

logger = logging.getLogger(__name__)

_CACHE_BYTES = 64 << 20
_PLAIN = EarlyExitOptions(enabled=False)
_WHOLE = EarlyExitOptions(return_trace=True)
_ALONE = EarlyExitOptions(lookup=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRuns:
    """One choice of heads against plain decoding."""

    speedup: float  # mean over prompts of plain's time over theirs, the prompt's own included
    speedup_alone: float  # the same without look-ups
    num_changed: int  # outputs that differ from plain decoding's: none, by contract
    results: Sequence[GenerationResult]  # by prompt, with traces


@dataclass(frozen=True, slots=True)
class _Run:
    """One prompt's."""

    result: GenerationResult
    seconds: float


@dataclass(slots=True)
class _Tally:
    """One choice of heads, prompt by prompt."""

    whole: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    results: list[GenerationResult] = field(default_factory=list)
    num_changed: int = 0

    def add(self, plain: _Run, whole: _Run, alone: _Run) -> None:
        """One more prompt."""
        self.whole.append(plain.seconds / whole.seconds)
        self.alone.append(plain.seconds / alone.seconds)
        self.results.append(whole.result)
        expected = plain.result.token_ids
        self.num_changed += expected != whole.result.token_ids
        self.num_changed += expected != alone.result.token_ids

    def sum_up(self) -> TimedRuns:
        """All prompts count alike."""
        return TimedRuns(
            speedup=round(sum(self.whole) / len(self.whole), 4),
            speedup_alone=round(sum(self.alone) / len(self.alone), 4),
            num_changed=self.num_changed,
            results=self.results,
        )


class Stopwatch:
    """Times heads of one model, one stream, greedy."""

    def __init__(
        self, model: ModelConfig, decoder: Decoder, prompts: Sequence[Sequence[int]], length: int
    ) -> None:
        """Args:
        length: Output tokens per prompt.
        """
        self._model = model
        self._decoder = decoder
        self._prompts = prompts
        self._length = length

    def run(self, candidates: Mapping[str, Path]) -> dict[str, TimedRuns]:
        """Time directories of heads by name."""
        engines = {name: self._engine(directory) for name, directory in candidates.items()}
        tallies = {name: _Tally() for name in engines}
        for engine in engines.values():
            self._generate(engine, 0, _WHOLE)
        with ProgressReport("timed runs", len(self._prompts), "prompts") as report:
            for index in range(len(self._prompts)):
                plain = self._generate(next(iter(engines.values())), index, _PLAIN)
                names = list(engines)
                for name in names[index % len(names) :] + names[: index % len(names)]:
                    alone = self._generate(engines[name], index, _ALONE)
                    tallies[name].add(plain, self._generate(engines[name], index, _WHOLE), alone)
                report.update(index + 1)
        runs = {name: tally.sum_up() for name, tally in tallies.items()}
        for name, timed in runs.items():
            logger.info("%s: %.3fx plain decoding", name, timed.speedup)
        return runs

    def _engine(self, heads: Path) -> OfflineEngine:
        config = EngineConfig(
            model=self._model,
            cache=CacheConfig(kv_cache_memory_bytes=_CACHE_BYTES),
            scheduler=SchedulerConfig(max_num_seqs=1, prefix_caching=False),
            exits=ExitsConfig(heads=heads),
            worker="inline",
        )
        return OfflineEngine(config, ModelWorker(config, decoder=self._decoder))

    def _generate(self, engine: OfflineEngine, index: int, early_exit: EarlyExitOptions) -> _Run:
        request = GenerationRequest(
            request_id=str(index),
            prompt_token_ids=tuple(self._prompts[index]),
            sampling=SamplingParams(temperature=0.0, max_tokens=self._length),
            early_exit=early_exit,
        )
        started = time.perf_counter()
        [result] = engine.generate([request])
        return _Run(result, time.perf_counter() - started)
