"""On a device that computes later, time is told where it is waited for."""

from pathlib import Path

import pytest
from tiny_model import (
    StepDriver,
    load_tiny,
    policy_drafter,
    random_heads,
    sequence_start,
    write_tiny_llama,
)

from engine.model.ops.torch_ops import TorchOps
from engine.worker.device_queue import DeviceQueue
from engine.worker.exit_policy import ExitPolicy

pytestmark = pytest.mark.torch


class Clock:
    """Shows what it is set to."""

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


def test_steps_tell_what_looks_and_ends_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every look and every end, and never a segment, whose call returns at once."""
    seen: list[tuple[str, float]] = []
    for name in ("observe_segment", "observe_head", "observe_logits"):
        monkeypatch.setattr(
            ExitPolicy, name, lambda self, *args, name=name: seen.append((name, args[-1]))
        )
    decoder = load_tiny(write_tiny_llama(tmp_path), TorchOps("cpu"))
    heads = random_heads(decoder, [2, 4], 40)
    ticks = iter(range(10_000))
    drafter = policy_drafter(
        decoder, heads, threshold=0.0, is_queued=True, clock=lambda: float(next(ticks))
    )
    StepDriver(decoder, 16, drafter).generate([sequence_start(0, [5, 9, 2])], 6)
    assert {name for name, _ in seen} == {"observe_head", "observe_logits"}
    # Made-up costs: a segment above an exit takes 0.1 s, the last one a second; the clock ticks
    # at every reading.
    assert all(seconds > 0.0 for name, seconds in seen if name == "observe_head")
