"""Heads at work: the engine with and without them, turn by turn on the same prompts."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.model.decoder import Decoder
from engine.offline import GenerationResult, OfflineEngine
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams
from engine.worker.worker import ModelWorker
from training.progress import ProgressReport

_CACHE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRuns:
    """One choice of heads against plain decoding."""

    speedup: float  # mean over prompts of plain's time over theirs, the prompt's own included
    num_changed: int  # outputs that differ from plain decoding's: none, by contract
    results: Sequence[GenerationResult]  # by prompt, with traces


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
        plain = EarlyExitOptions(enabled=False)
        engines = {name: self._engine(directory) for name, directory in candidates.items()}
        first = next(iter(engines.values()))
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        results: dict[str, list[GenerationResult]] = {name: [] for name in engines}
        changed = dict.fromkeys(engines, 0)
        for engine in engines.values():
            self._generate(engine, 0, EarlyExitOptions())
        with ProgressReport("timed runs", len(self._prompts), "prompts") as report:
            for index in range(len(self._prompts)):
                reference, plain_s = self._generate(first, index, plain)
                names = list(engines)
                for name in names[index % len(names) :] + names[: index % len(names)]:
                    result, took = self._generate(
                        engines[name], index, EarlyExitOptions(return_trace=True)
                    )
                    seconds[name].append(plain_s / took)
                    results[name].append(result)
                    changed[name] += result.token_ids != reference.token_ids
                report.update(index + 1)
        return {
            name: TimedRuns(
                speedup=round(sum(ratios) / len(ratios), 4),
                num_changed=changed[name],
                results=results[name],
            )
            for name, ratios in seconds.items()
        }

    def _engine(self, heads: Path) -> OfflineEngine:
        config = EngineConfig(
            model=self._model,
            cache=CacheConfig(kv_cache_memory_bytes=_CACHE_BYTES),
            scheduler=SchedulerConfig(max_num_seqs=1, prefix_caching=False),
            exits=ExitsConfig(heads=heads),
            worker="inline",
        )
        return OfflineEngine(config, ModelWorker(config, decoder=self._decoder))

    def _generate(
        self, engine: OfflineEngine, index: int, early_exit: EarlyExitOptions
    ) -> tuple[GenerationResult, float]:
        request = GenerationRequest(
            request_id=str(index),
            prompt_token_ids=tuple(self._prompts[index]),
            sampling=SamplingParams(temperature=0.0, max_tokens=self._length),
            early_exit=early_exit,
        )
        started = time.perf_counter()
        [result] = engine.generate([request])
        return result, time.perf_counter() - started
