"""On a device that computes later, time is measured where the host waits for it."""

import itertools
from pathlib import Path

import pytest
from tiny_model import StepDriver, load_tiny, random_heads, sequence_start, write_tiny_llama

from engine.model.ops.torch_ops import TorchOps
from engine.worker.chances import Chances
from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from engine.worker.device_queue import DeviceQueue
from engine.worker.exit_evaluator import ExitEvaluator
from engine.worker.exit_policy import ExitPolicy
from engine.worker.policy_drafter import PolicyDrafter
from engine.worker.sampler import Sampler

pytestmark = pytest.mark.torch


class Clock:
    """A clock that shows what it is set to."""

    now = 5.0

    def __call__(self) -> float:
        return self.now


def test_who_waits_pays_for_what_is_left() -> None:
    clock = Clock()
    queue = DeviceQueue(clock)
    queue.begin()
    queue.add(1, 2.0)
    clock.now += 3.0
    assert queue.wait() == 1.0
    queue.add(1, 2.0)
    clock.now += 1.0
    assert queue.wait() == 0.0, "never less than nothing"
    clock.now += 0.5
    assert queue.wait() == 0.5


def test_what_was_never_measured_is_not_taken_off() -> None:
    clock = Clock()
    queue = DeviceQueue(clock)
    assert queue.wait() is None, "no step has begun"
    queue.begin()
    queue.add(512, 2.0)
    assert queue.wait() is None
    queue.begin()
    queue.add(64, 2.0)
    assert queue.wait() is not None


def test_evaluations_and_ends_of_steps_are_timed_and_segments_are_not(tmp_path: Path) -> None:
    """A segment's call returns at once."""
    decoder = load_tiny(write_tiny_llama(tmp_path), TorchOps("cpu"))
    heads = random_heads(decoder, [2, 4], 40)
    segments = [CostCurve([1], [seconds]) for seconds in (0.1, 0.1, 1.0)]
    evaluations, end = [CostCurve([1], [0.1]) for _ in range(2)], CostCurve([1], [1.0])
    cost = CostModel(segments, evaluations, end)
    seen: list[tuple[CostCurve, float]] = []
    cost.on_observation = lambda curve, _, seconds: seen.append((curve, seconds))
    ticks = itertools.count()  # the clock ticks at every reading
    drafter = PolicyDrafter(
        ExitPolicy(2, cost),
        Chances([2, 4], heads.calibration),
        exit_layers=[2, 4],
        exit_evaluator=ExitEvaluator(heads, Sampler(decoder.ops)),
        threshold=0.0,
        clock=lambda: float(next(ticks)),
        is_queued=True,
    )
    StepDriver(decoder, 16, drafter).generate([sequence_start(0, [5, 9, 2])], 6)
    assert {curve for curve, _ in seen} == {*evaluations, end}
    assert all(seconds > 0.0 for curve, seconds in seen if curve is not end)
