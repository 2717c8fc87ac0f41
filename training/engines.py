"""Makes engines that share one copy of the weights, each with the clock that times it."""

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
# CPU time suits machines that do other work as well; it is the sum over all threads.
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
MODELLED = "modelled"

_TRAFFIC_ROWS = (1, 2, 4, 8)
_TRAFFIC_DRAFTS = (0, 1, 3)  # at most, per row and step
_TRAFFIC_TOKENS = 16  # output tokens per prompt
_TRAFFIC_ROUNDS = 2  # so that a busy moment does not hit all batches of one size


@dataclass(frozen=True, slots=True)
class TimedEngine:
    """An engine, and the clock that its runs are timed by."""

    engine: OfflineEngine
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Short prompts to measure the costs of a step with.

    They are served in batches of several sizes and with several numbers of drafts, so that every
    part of a step is timed with few tokens and with many.
    """

    prompts: Sequence[Sequence[int]]  # token ids; the shortest are taken
    temperature: float

    def serve(self, engine: OfflineEngine) -> None:
        """Serve all batches."""
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
    """Makes engines of one configuration that differ only in their exits."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        clock: str,
        costs: Path | None,
        traffic: Traffic,
        decoder: Decoder | None = None,
    ) -> None:
        """
        Args:
            clock: One of `CLOCKS`, or MODELLED.
            costs: File that the modelled clock's costs are read from; costs that it lacks are
                measured and written there.
            decoder: The model, if it is loaded already.

        Raises:
            ValueError: if costs are given for another clock, or the file holds no costs.
        """
        if costs is not None and clock != MODELLED:
            raise ValueError(f"--costs: only --clock {MODELLED} uses them")
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
        """Make an engine with these exits.

        Args:
            verifies: Whether drafts are verified; without, the output may change.

        Raises:
            ValueError: if the clock's costs were measured with another model.
        """
        worker, clock = self.worker(exits, verifies=verifies)
        return TimedEngine(OfflineEngine(replace(self.config, exits=exits), worker), clock)

    def worker(self, exits: ExitsConfig, *, verifies: bool = True) -> tuple[ModelWorker, Clock]:
        """Make the worker and the clock of an engine with these exits; see `make`."""
        clock = self._clock_for(exits)
        config = replace(self.config, exits=exits)
        worker = ModelWorker(config, decoder=self._decoder, verifies=verifies, clock=clock)
        self._decoder = worker.decoder
        if isinstance(clock, ModelledClock) and self.costs is not None:
            self.costs.check(_measured_of(worker))
        return worker, clock

    @property
    def settings(self) -> dict[str, str]:
        """The clock and its costs, for people to read."""
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
        """Measure the costs of a step with these exits, by the wall clock."""
        rows = SchedulerConfig(max_num_seqs=max(_TRAFFIC_ROWS))
        still = replace(exits, learn=False)
        config = replace(self.config, exits=still, scheduler=rows)
        worker = ModelWorker(config, decoder=self._decoder)
        self._decoder = worker.decoder
        if worker.drafting is None:
            raise ValueError(f"--clock {MODELLED}: nothing drafts here, so nothing has a cost")
        seen = Observations(worker.drafting.policy.cost)
        self._traffic.serve(OfflineEngine(config, worker))
        costs = StepCosts.of(_measured_of(worker), seen, sizes, self._num_layers)
        del worker, seen
        gc.collect()  # frees the worker's KV cache
        return costs


def _measured_of(worker: ModelWorker) -> dict[str, str]:
    info = worker.info
    return {
        "weights": worker.decoder.fingerprint,
        "numbers": f"{info.numbers} on {info.device} by {info.backend}",
    }
