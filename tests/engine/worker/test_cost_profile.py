"""Costs are measured once per machine and model, and again when what they depend on changed."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.model.ops.interface import TokenBatch
from engine.model.ops.torch_ops import TorchOps
from engine.worker.cost_profile import TOKEN_COUNTS, Profiler, cost_model, plausible

pytestmark = pytest.mark.torch


@dataclass
class SleepyRunner:
    """Implements `SegmentRunner`: every call is counted, and may not fit the memory."""

    most_tokens: int = 64
    counts: list[int] = field(default_factory=list)

    def embed(self, token_ids: Tensor) -> Tensor:
        return torch.zeros(len(token_ids), 2)

    def run(self, index: int, hidden: Tensor, batch: TokenBatch) -> Tensor:
        if len(hidden) > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.counts.append(len(hidden))
        time.sleep(0.0004 * (1 + index) + 0.00001 * len(hidden))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def profiler(runner: SleepyRunner) -> Profiler:
    return Profiler(runner, 2, None, 16, TorchOps("cpu"))


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is that runs the test."""
    monkeypatch.setattr("engine.worker.cost_profile._QUIET", 1e9)


@pytest.mark.usefixtures("quiet")
def test_a_second_start_reads_what_the_first_measured(tmp_path: Path) -> None:
    first, second = SleepyRunner(), SleepyRunner()
    measured = cost_model(profiler(first), tmp_path, {"model": "a"})
    read = cost_model(profiler(second), tmp_path, {"model": "a"})
    assert set(first.counts) == set(TOKEN_COUNTS)
    assert second.counts == []
    assert [read.segment(1, n) for n in (1, 5, 64)] == [measured.segment(1, n) for n in (1, 5, 64)]
    assert 0 < measured.segment(0, 1) < measured.segment(1, 1)


def _other_facts(_: Path) -> dict[str, str]:
    return {"model": "b"}


def _age(directory: Path) -> dict[str, str]:
    (path,) = directory.iterdir()
    os.utime(path, (0, 0))
    return {"model": "a"}


def _break(directory: Path) -> dict[str, str]:
    (path,) = directory.iterdir()
    path.write_text('{"segment 0": [1]}')
    return {"model": "a"}


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("change", [_other_facts, _age, _break])
def test_what_is_stale_is_measured_again(
    tmp_path: Path, change: Callable[[Path], dict[str, str]]
) -> None:
    cost_model(profiler(SleepyRunner()), tmp_path, {"model": "a"})
    runner = SleepyRunner()
    cost_model(profiler(runner), tmp_path, change(tmp_path))
    assert runner.counts


def test_what_a_busy_machine_took_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.worker.cost_profile._QUIET", 0.0)
    cost_model(profiler(SleepyRunner()), tmp_path, {"model": "a"})
    assert list(tmp_path.iterdir()) == []


def test_steps_that_do_not_fit_the_memory_are_left_out(tmp_path: Path) -> None:
    cost = cost_model(profiler(SleepyRunner(most_tokens=8)), tmp_path, {"model": "a"})
    assert [count for count, _ in cost.segments[0].points] == [1, 2, 4, 8]


def test_what_only_a_disturbance_can_have_taken_is_left_out() -> None:
    sound = {1: 1.0, 2: 1.1, 4: 1.4, 8: 2.5, 16: 5.0}
    assert plausible(sound) == sound
    assert plausible({1: 3.0, 2: 1.1, 4: 1.4}) == {1: 1.1, 2: 1.1, 4: 1.4}
    assert plausible({1: 1.0, 2: 9.0, 4: 9.5, 8: 9.9}) == {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}


@pytest.mark.usefixtures("quiet")
def test_a_disk_that_takes_nothing_costs_only_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert cost_model(profiler(SleepyRunner()), blocked / "costs", {}).plain(1) > 0
