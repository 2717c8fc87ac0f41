"""The host's work around a step, and how much of it delays a GPU: `python -m benchmarks.host`.

Scheduler, worker and graphs run as they do for a GPU, but on an imagined device: the parts of a
step take the times that they are given, and all else is the Python of a step on this machine, in
CPU time. The figures are the worker's and the scheduler's time, and how much of both is "felt",
that is, passes while the device has nothing to do. Not included is sending data to a GPU, nor,
unless `--launch` is given, launching a kernel or a graph. Needs torch only.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from benchmarks.gpu.shapes import Shape, random_decoder, write_heads
from benchmarks.imagined_device import Costs, DeviceClock, EvenCosts, ImaginedOps, Work
from benchmarks.machine import describe_machine, print_facts
from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.offline import OfflineEngine
from engine.pauses import sparing_what_is_loaded
from engine.plan import RowResult, StepPlan, StepResult, WorkerInfo
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams, Structure
from engine.worker.worker import ModelWorker

_SHAPE = Shape(
    name="imagined",
    hidden=4,
    feed_forward=4,
    layers=30,
    heads=1,
    kv_heads=1,
    vocabulary=1024,
    is_tied=True,
    positions=4096,
    reduced_vocabulary=1024,
)
_EXIT_LAYERS = [0]
_PROMPT = 64  # tokens
_LEFT_OUT = 0.25  # share of steps left out at either end, where other work may have disturbed
_LARGE_S = 180e-6  # a layer of a model so large that drafts pay whatever the host does
FIGURES = ("tokens", "drafts", "launches", "reads", "worker", "scheduler", "felt", "speed")


@dataclass(frozen=True, slots=True)
class Way:
    """One way of serving."""

    name: str
    drafts: bool = True
    lookup: bool = False
    agreement: float = 0.8  # share of tokens after which the head agrees with the model
    period: int = 1000  # tokens after which texts repeat themselves
    layer_s: float = 18e-6  # a layer of a small model, which takes 0.6 ms a pass

    @property
    def costs(self) -> Costs:
        """What the parts of a step take."""
        return EvenCosts(layer_s=self.layer_s, logits_s=3 * self.layer_s, head_s=2 * self.layer_s)


WAYS = {
    way.name: way
    for way in (
        Way("plain", drafts=False),
        Way("no draft pays", agreement=0.0),
        Way("heads draft", layer_s=_LARGE_S),
        Way("look-ups and heads draft", lookup=True, period=48, layer_s=_LARGE_S),
    )
}
CASES = [
    *(("plain", rows, 0.0) for rows in (1, 16, 64)),
    *(("plain", rows, 0.8) for rows in (1, 16, 64)),
    *(("no draft pays", rows, 0.0) for rows in (1, 16, 64)),
    *(("heads draft", rows, temperature) for rows in (1, 16) for temperature in (0.0, 0.8)),
    *(("look-ups and heads draft", 1, temperature) for temperature in (0.0, 0.8)),
]


@dataclass(frozen=True, slots=True)
class Step:
    """A step in which all rows decoded."""

    between: Work  # since the previous step
    inside: Work
    ended_at: float  # on the imagined clock
    rows: Sequence[RowResult]


class WatchedWorker:
    """A worker that keeps the figures of its decode steps."""

    def __init__(self, worker: ModelWorker, clock: DeviceClock, spent_s: float = 0.0) -> None:
        """
        Args:
            spent_s: Seconds that the host spends after every step besides what it does here.
        """
        self.info: WorkerInfo = worker.info
        self.steps: list[Step] = []
        self._worker = worker
        self._clock = clock
        self._spent_s = spent_s

    def execute(self, plan: StepPlan) -> StepResult:
        """See `SynchronousWorker.execute`."""
        between = self._clock.tell()
        result = self._worker.execute(plan)
        inside = self._clock.tell()
        self._clock.spend(self._spent_s)
        if all(row.only_decodes for row in plan.rows) and not plan.started:
            self.steps.append(Step(between, inside, self._clock(), result.rows))
        self._clock.tell()
        return result

    def prepare(self, structure: Structure) -> None:
        """See `SynchronousWorker.prepare`."""

    def rest(self, *, is_idle: bool) -> bool:
        """See `SynchronousWorker.rest`."""
        return self._worker.rest(is_idle=is_idle)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=400, help="of every case (%(default)s)")
    parser.add_argument(
        "--launch", type=float, default=0.0, metavar="US", help="that a launch takes (%(default)s)"
    )
    parser.add_argument("--only", metavar="TEXT", default="", help="ways with this in their name")
    args = parser.parse_args()
    print_facts(describe_machine())
    print(
        "\na step's tokens and drafts per row, launches and reads, and microseconds of the host; "
        "tokens per second, from the first on, over those without early exits:"
    )
    print(f"{'':<26}{'rows':>6}{'T':>6}" + "".join(name.rjust(11) for name in FIGURES))
    with tempfile.TemporaryDirectory() as folder:
        engines: dict[str, tuple[OfflineEngine, WatchedWorker]] = {}
        for name, rows, temperature in CASES:
            if args.only not in name:
                continue
            if name not in engines:
                clock = DeviceClock(args.launch * 1e-6)
                engines[name] = make_engine(WAYS[name], Path(folder), clock)
            engine, worker = engines[name]
            figures = _measure(engine, worker, rows, temperature, args.steps)
            cells = "".join(f"{figures[figure]:>11.2f}" for figure in FIGURES)
            print(f"{name:<26}{rows:>6}{temperature:>6}{cells}", flush=True)


def make_engine(
    way: Way,
    folder: Path,
    clock: DeviceClock | None = None,
    costs: Costs | None = None,
    spent_s: float = 0.0,
) -> tuple[OfflineEngine, WatchedWorker]:
    """Make an engine on the imagined device; return it and its worker.

    Args:
        costs: What the parts of a step take, if not what the way says.
        spent_s: See `WatchedWorker`.
    """
    clock = clock or DeviceClock()
    ops = ImaginedOps(
        clock, costs or way.costs, _SHAPE.vocabulary, period=way.period, agreement=way.agreement
    )
    directory = _SHAPE.write(folder / _SHAPE.name)
    decoder = random_decoder(_SHAPE, directory, ops)
    config = EngineConfig(
        model=ModelConfig(directory=directory, device="cpu", num_threads=1),
        cache=CacheConfig(kv_cache_memory_bytes=1 << 27),
        scheduler=SchedulerConfig(max_num_seqs=64),
        exits=ExitsConfig(enabled=way.drafts, lookup=way.lookup),
    )
    if way.drafts:
        heads = write_heads(_SHAPE, _EXIT_LAYERS, folder / "heads")
        config = replace(config, exits=replace(config.exits, heads=heads))
    with _cache_in(folder / way.name):  # the costs of parts are measured anew every time
        worker = ModelWorker(config, decoder=decoder, clock=clock, capture=clock.capture)
    watched = WatchedWorker(worker, clock, spent_s)
    return OfflineEngine(config, watched), watched


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Use a folder as the cache, so that no earlier measurement is read and none is kept."""
    name = "ADADECODE_CACHE"
    before = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def requests(
    rows: int, temperature: float, num_tokens: int, *, early_exit: bool = True
) -> list[GenerationRequest]:
    """Make one request per row, each with a prompt of its own."""
    return [
        GenerationRequest(
            request_id=str(index),
            # Lengths differ as they do in service: some row needs a new block in every step.
            prompt_token_ids=tuple(range(2 + index, 2 + 2 * index + _PROMPT)),
            sampling=SamplingParams(
                temperature=temperature, seed=index, max_tokens=num_tokens, ignore_eos=True
            ),
            early_exit=EarlyExitOptions(enabled=early_exit),
        )
        for index in range(rows)
    ]


def _measure(
    engine: OfflineEngine, worker: WatchedWorker, rows: int, temperature: float, num_steps: int
) -> dict[str, float]:
    """Return the mean figures of a step, the times without the fastest and slowest steps."""
    rates: list[float] = []
    for early_exit in (False, True):
        worker.steps.clear()
        with sparing_what_is_loaded():
            engine.generate(requests(rows, temperature, num_steps, early_exit=early_exit))
        steps = [step for step in worker.steps if len(step.rows) == rows]
        num_tokens = sum(len(row.token_ids) for step in steps[1:] for row in step.rows)
        rates.append(num_tokens / (steps[-1].ended_at - steps[0].ended_at))
    steps = steps[len(steps) // 2 :]  # the first half warms up, and the policy learns
    return {
        "tokens": mean(len(row.token_ids) for step in steps for row in step.rows),
        "drafts": mean(len(row.drafts) for step in steps for row in step.rows),
        "launches": mean(step.inside.num_launches for step in steps),
        "reads": mean(step.inside.num_reads for step in steps),
        "worker": _middle([step.inside.host_s for step in steps]) * 1e6,
        "scheduler": _middle([step.between.host_s for step in steps]) * 1e6,
        "felt": _middle([step.between.felt_s + step.inside.felt_s for step in steps]) * 1e6,
        "speed": rates[1] / rates[0],
    }


def _middle(seconds: Sequence[float]) -> float:
    """Return the mean without the smallest and the largest values."""
    count = int(len(seconds) * _LEFT_OUT)
    return mean(sorted(seconds)[count : len(seconds) - count])


if __name__ == "__main__":
    main()
