"""Where a plain decode step's time goes: `python -m benchmarks.step`.

Runs a model through scheduler and worker in this process with native kernels, for each form of
weights, number of rows and length of context. Prints milliseconds per step by part (medians over
the steps), and the rate at which a step reads weights as a share of the memory bandwidth, measured
in the same run. Needs torch only.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import describe_machine, print_facts, read_bandwidth
from benchmarks.native_flags import add_flags, native_ops, numbers, require_native
from engine.checkpoint import resolve_model
from engine.config import EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.model.decoder import Decoder
from engine.model.ops.native.linear import Format
from engine.model.ops.native_ops import NativeOps
from engine.offline import OfflineEngine
from engine.plan import StepPlan, StepResult, WorkerInfo
from engine.request import GenerationRequest, SamplingParams, Structure
from engine.worker.cores import cores_to_pin
from engine.worker.worker import ModelWorker

_PARTS = ("embed", "layers", "head", "sampling")
_TOKEN = 50  # any token that is not special


@dataclass
class StepTimes:
    """The seconds of one step by part, and the bytes of the weights that it reads."""

    parts: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    weight_bytes: int = 0

    def watch(self, target: object, name: str, part: str, size: Callable[..., int]) -> None:
        """Time a method's calls as a part of the step.

        Args:
            size: Returns the bytes of weights that a call reads, given its arguments.
        """
        method = getattr(target, name)

        def timed(*args: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = method(*args, **options)
            self.parts[part] += time.perf_counter() - started
            self.weight_bytes += size(*args)
            return result

        setattr(target, name, timed)


class TimedWorker:
    """A worker that keeps the times of its steps, part by part."""

    def __init__(self, worker: ModelWorker, ops: NativeOps) -> None:
        self.info: WorkerInfo = worker.info
        self.steps: list[tuple[int, StepTimes]] = []  # tokens computed, and their times
        self._worker = worker
        self._times = StepTimes()
        watch = self._times.watch
        watch(ops, "embed", "embed", lambda *_: 0)
        watch(ops, "run_layers", "layers", lambda _, layers, *rest: sum(map(_layer_bytes, layers)))
        watch(ops, "linear", "head", lambda _, weight, *rest: weight.num_bytes)
        watch(ops, "sample", "sampling", lambda *_: 0)

    def execute(self, plan: StepPlan) -> StepResult:
        """See `SynchronousWorker.execute`."""
        self._times.parts.clear()
        self._times.weight_bytes = 0
        started = time.perf_counter()
        result = self._worker.execute(plan)
        step = StepTimes(dict(self._times.parts), self._times.weight_bytes)
        step.parts["worker"] = time.perf_counter() - started
        self.steps.append((sum(row.num_tokens for row in plan.rows), step))
        return result

    def prepare(self, structure: Structure) -> None:
        """See `SynchronousWorker.prepare`."""
        self._worker.prepare(structure)

    def rest(self, *, is_idle: bool) -> bool:
        """See `SynchronousWorker.rest`."""
        return self._worker.rest(is_idle=is_idle)


def _layer_bytes(layer: Any) -> int:
    weights = (layer.qkv, layer.output, layer.gate_up, layer.down)
    return sum(weight.num_bytes for weight in weights)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_flags(parser)
    parser.add_argument("--pin", choices=("always", "never"), default="never", help="(%(default)s)")
    parser.add_argument(
        "--rows", type=numbers, default="1,4,8", help="at the shortest context (%(default)s)"
    )
    parser.add_argument("--contexts", type=numbers, default="64,4000", help="tokens (%(default)s)")
    parser.add_argument("--steps", type=int, default=48, help="(%(default)s)")
    args = parser.parse_args()
    require_native()
    print_facts(describe_machine() | {"threads": str(args.threads), "pinned": args.pin})
    cores = cores_to_pin(args.threads, args.pin)
    torch.set_num_threads(args.threads)
    gigabytes = read_bandwidth()
    print(f"{'memory':<12} {gigabytes:.1f} GB/s read by torch's sum\n")
    torch.set_num_threads(1)
    columns = ("form", "rows", "context", "ms/step", *_PARTS, "worker's rest", "scheduler")
    print("".join(name.rjust(14) for name in (*columns, "GB/s", "share", "prompt tok/s")))
    contexts = sorted(args.contexts)
    directory = resolve_model(args.model)
    for form in args.forms:
        ops = native_ops(args, form, cores)
        engine, worker = _engine(directory, ops, args.threads, max(args.rows))
        cases = [(rows, contexts[0]) for rows in args.rows]
        cases += [(1, context) for context in contexts[1:]]
        for rows, context in cases:
            _print_case(engine, worker, form, rows, context, args.steps, gigabytes)


def _engine(
    directory: Path, ops: NativeOps, threads: int, rows: int
) -> tuple[OfflineEngine, TimedWorker]:
    config = EngineConfig(
        model=ModelConfig(directory=directory, device="cpu", num_threads=threads),
        scheduler=SchedulerConfig(max_num_seqs=rows),
        exits=ExitsConfig(enabled=False),
    )
    worker = TimedWorker(ModelWorker(config, decoder=Decoder.load(directory, ops)), ops)
    return OfflineEngine(config, worker), worker


def _print_case(
    engine: OfflineEngine,
    worker: TimedWorker,
    form: Format,
    rows: int,
    context: int,
    steps: int,
    gigabytes: float,
) -> None:
    requests = [
        GenerationRequest(
            request_id=str(index),
            prompt_token_ids=(_TOKEN + index,) * context,
            sampling=SamplingParams(temperature=0.0, max_tokens=steps, ignore_eos=True),
        )
        for index in range(rows)
    ]
    worker.steps.clear()
    moments = [time.perf_counter()]
    engine.generate(requests, on_step=lambda _: moments.append(time.perf_counter()))
    gaps = [later - earlier for earlier, later in pairwise(moments)]
    prompt = [gap for (tokens, _), gap in zip(worker.steps, gaps, strict=True) if tokens > rows]
    decode = [
        (gap, step)
        for (tokens, step), gap in zip(worker.steps, gaps, strict=True)
        if tokens == rows
    ]
    whole = median(gap for gap, _ in decode)
    parts = [median(step.parts.get(part, 0.0) for _, step in decode) for part in _PARTS]
    in_worker = median(step.parts["worker"] for _, step in decode)
    read = decode[0][1].weight_bytes / whole / 1e9
    milliseconds = [whole, *parts, in_worker - sum(parts), whole - in_worker]
    cells = [form.name.lower(), str(rows), str(context)]
    cells += [f"{seconds * 1e3:.2f}" for seconds in milliseconds]
    cells += [f"{read:.1f}", f"{read / gigabytes:.0%}", f"{rows * context / sum(prompt):.0f}"]
    print("".join(cell.rjust(14) for cell in cells), flush=True)


if __name__ == "__main__":
    main()
