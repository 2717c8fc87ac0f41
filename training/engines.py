"""Engines that share one copy of the weights, each with the clock that it goes by."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from pathlib import Path

from engine.config import EngineConfig, ExitsConfig, SchedulerConfig
from engine.model.decoder import Decoder
from engine.model.spec import ModelSpec
from engine.offline import OfflineEngine
from engine.pauses import sparing_what_is_loaded
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams
from engine.worker.modelled_clock import ModelledClock
from engine.worker.worker import ModelWorker
from training.progress import ProgressReport
from training.step_costs import HeadSizes, Observations, StepCosts

Clock = Callable[[], float]
# The process's CPU time is for machines that do other work as well; mind that threads add up.
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
MODELLED = "modelled"

_TRAFFIC_ROWS = (1, 2, 4, 8)
_TRAFFIC_DRAFTS = (0, 1, 3)  # per row and step
_TRAFFIC_TOKENS = 16  # per prompt
_TRAFFIC_ROUNDS = 2  # a busy moment does not fall on all batches of a size


@dataclass(frozen=True, slots=True)
class TimedEngine:
    """An engine, and the clock that tells what it takes."""

    engine: OfflineEngine
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Short prompts, served in batches of some sizes and with some numbers of drafts, so that
    every part is seen with few tokens and with many.
    """

    prompts: Sequence[Sequence[int]]  # token ids; the shortest are taken
    temperature: float

    def serve(self, engine: OfflineEngine) -> None:
        """All of it."""
        ways = [*product(_TRAFFIC_ROWS, _TRAFFIC_DRAFTS)] * _TRAFFIC_ROUNDS
        with ProgressReport("measuring costs", len(ways), "batches") as report:
            for number, (num_rows, num_drafts) in enumerate(ways, start=1):
                early_exit = EarlyExitOptions(
                    enabled=num_drafts > 0,
                    threshold=0.0,
                    max_draft_tokens=num_drafts,
                    lookup=not engine.info.exit_layers,
                )
                with sparing_what_is_loaded():
                    engine.generate(self._requests(num_rows, early_exit))
                report.update(number)

    def _requests(self, count: int, early_exit: EarlyExitOptions) -> list[GenerationRequest]:
        shortest = sorted(self.prompts, key=len)
        return [
            GenerationRequest(
                request_id=str(number),
                prompt_token_ids=tuple(prompt),
                sampling=SamplingParams(
                    temperature=self.temperature,
                    seed=number,
                    max_tokens=_TRAFFIC_TOKENS,
                    ignore_eos=True,
                ),
                early_exit=early_exit,
            )
            for number, prompt in enumerate(islice(cycle(shortest), count))
        ]


class Engines:
    """Makes them, of one configuration but for the exits."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        clock: str,
        costs: Path | None,
        traffic: Traffic,
        decoder: Decoder | None = None,
    ) -> None:
        """Args:
        clock: One of `CLOCKS`, or MODELLED.
        costs: Where the modelled clock's costs are read from; kept there where they are measured.
        decoder: The model, where it is loaded already.

        Raises:
            ValueError: if costs are given to another clock, or they are none.
        """
        if costs is not None and clock != MODELLED:
            raise ValueError(f"--costs: only --clock {MODELLED} goes by them")
        self.config = config
        self._clock = clock
        self._file = costs
        self._traffic = traffic
        self._num_layers = ModelSpec.from_directory(config.model.directory).num_layers
        self._decoder = decoder
        self.costs: StepCosts | None = None
        if costs is not None and costs.exists():
            self.costs = StepCosts.read(costs)

    def make(self, exits: ExitsConfig, *, verifies: bool = True) -> TimedEngine:
        """An engine that drafts in this way.

        Raises:
            ValueError: if the costs that the clock goes by are another model's.
        """
        worker, clock = self.worker(exits, verifies=verifies)
        return TimedEngine(OfflineEngine(replace(self.config, exits=exits), worker), clock)

    def worker(self, exits: ExitsConfig, *, verifies: bool = True) -> tuple[ModelWorker, Clock]:
        """What `make` makes an engine of."""
        clock = self._clock_for(exits)
        config = replace(self.config, exits=exits)
        worker = ModelWorker(config, decoder=self._decoder, verifies=verifies, clock=clock)
        self._decoder = worker.decoder
        if isinstance(clock, ModelledClock) and self.costs is not None:
            self.costs.check(_measured_of(worker))
        return worker, clock

    @property
    def settings(self) -> dict[str, str]:
        """What they go by, for people."""
        costs = {} if self.costs is None else {"costs": str(self.costs)}
        return {"clock": self._clock} | costs

    def _clock_for(self, exits: ExitsConfig) -> Clock:
        if self._clock != MODELLED:
            return CLOCKS[self._clock]
        sizes = HeadSizes.of(exits.heads if exits.enabled else None)
        if self.costs is None or not self.costs.knows(sizes):
            measured = self._measure(exits, sizes)
            if self.costs is not None:
                self.costs.check(measured.measured_of)
                measured = self.costs.with_heads_of(measured)
            self.costs = measured
            if self._file is not None:
                self.costs.write(self._file)
        return ModelledClock(self.costs.model(sizes, self._num_layers))

    def _measure(self, exits: ExitsConfig, sizes: HeadSizes) -> StepCosts:
        """By the wall clock."""
        rows = SchedulerConfig(max_num_seqs=max(_TRAFFIC_ROWS))
        still = replace(exits, learn=False)
        config = replace(self.config, exits=still, scheduler=rows)
        worker = ModelWorker(config, decoder=self._decoder)
        self._decoder = worker.decoder
        if worker.drafting is None:
            raise ValueError(f"--clock {MODELLED}: nothing drafts here, so nothing has a cost")
        seen = Observations(worker.drafting.cost)
        self._traffic.serve(OfflineEngine(config, worker))
        costs = StepCosts.of(_measured_of(worker), seen, sizes, self._num_layers)
        del worker, seen
        gc.collect()  # its KV cache
        return costs


def _measured_of(worker: ModelWorker) -> dict[str, str]:
    info = worker.info
    return {
        "weights": worker.decoder.fingerprint,
        "numbers": f"{info.dtype} on {info.device} by {info.backend}",
    }
