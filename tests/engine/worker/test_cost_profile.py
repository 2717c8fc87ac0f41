"""Costs are measured once per machine and model, and again if what they depend on has changed."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_model import VOCAB, load_tiny, random_heads, write_tiny_llama
from torch import Tensor

from engine.model.ops.interface import TokenBatch
from engine.model.ops.torch_ops import TorchOps
from engine.worker.cost_profile import TIMED_COUNTS, Profiler, cost_model, plausible
from engine.worker.decode_step import split_layers
from engine.worker.dummy_rows import DummyRows
from engine.worker.kv_cache import allocate_cache
from engine.worker.segment_runner import EagerRunner

pytestmark = pytest.mark.torch


@dataclass
class PlayedRunner:
    """Implements `SegmentRunner` on a simulated clock; counts calls, and may run out of memory."""

    load: float = 1.0  # how many times as long calls take as on a quiet machine
    growth: float = 1.0  # factor by which every call increases the load
    most_tokens: int = 64  # more tokens do not fit into memory
    counts: list[int] = field(default_factory=list)
    now: float = 0.0

    def clock(self) -> float:
        return self.now

    def embed(self, token_ids: Tensor) -> Tensor:
        return torch.zeros(len(token_ids), 2)

    def run(self, index: int, hidden: Tensor, batch: TokenBatch) -> Tensor:
        if len(hidden) > self.most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.counts.append(len(hidden))
        self._spend(0.0004 * (1 + index) + 0.00001 * len(hidden))
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        self._spend(0.0002)
        return hidden

    def _spend(self, seconds: float) -> None:
        self.now += self.load * seconds
        self.load *= self.growth


def cost_of(runner: PlayedRunner, directory: Path, model: str = "a") -> list[float]:
    """Return the cost of a plain step of 1, 5 and 64 tokens after a start with this runner."""
    profiler = Profiler(runner, 2, None, 16, TorchOps("cpu"), runner.clock)
    cost = cost_model(profiler, directory, {"model": model})
    return [cost.plain(count) for count in (1, 5, 64)]


class PlayedRows:
    """Whole steps on a simulated clock; the more rows, the longer they take beside their parts."""

    def __init__(self, runner: PlayedRunner) -> None:
        self._runner = runner
        self.num_pending = {count: 2 * count for count in TIMED_COUNTS}

    def plain_step(self, count: int) -> Callable[[], object]:
        return lambda: self._runner._spend(0.002 * count)

    def plain_steps(self, count: int) -> list[Callable[[], object]]:
        return [partial(self._runner._spend, seconds * count) for seconds in (0.002, 0.0015)]

    def drafting_step(self, count: int) -> Callable[[], object]:
        return lambda: self._runner._spend(0.004 * count + 2 * 0.0005 * count)


class PlayedHead:
    """Implements `Head`; its calls take no time."""

    exit_layer = 2

    def __call__(
        self, hidden: Tensor, previous: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        return hidden, torch.zeros(len(hidden), 40), torch.zeros(len(hidden), 1)


def test_whole_steps_count_where_the_host_has_work_beside_the_parts(tmp_path: Path) -> None:
    runner = PlayedRunner()
    rows = PlayedRows(runner)
    decoder = load_tiny(write_tiny_llama(tmp_path / "model"), TorchOps("cpu"))
    heads = replace(random_heads(decoder, [2], 40), heads=[PlayedHead()])
    profiler = Profiler(runner, 2, heads, 16, TorchOps("cpu"), runner.clock, rows)  # type: ignore[arg-type]
    cost = cost_model(profiler, tmp_path, {})
    assert [cost.head(0, count) for count in (1, 4, 64)] == pytest.approx([0.0005, 0.002, 0.032])
    assert [cost.steady(count) for count in (1, 4, 64)] == pytest.approx([0.0015, 0.006, 0.096])
    parts = cost_of(PlayedRunner(), tmp_path / "parts")
    assert [cost.plain(count) for count in (1, 4, 64)] == pytest.approx([0.002, 0.008, 0.128])
    assert parts[0] < 0.002
    assert cost.segment(0, 1) < 0.001, "the parts cost what they cost"
    measured = len(runner.counts)
    cost_model(profiler, tmp_path, {})
    assert len(runner.counts) == measured, "steps are compared with steps, and no part is outdone"


@pytest.mark.parametrize("exits", [[0], [2], [2, 4]])
def test_dummy_rows_step_and_draft_as_often_as_wanted(
    tmp_path_factory: pytest.TempPathFactory, exits: list[int]
) -> None:
    decoder = load_tiny(write_tiny_llama(tmp_path_factory.mktemp("tiny")), TorchOps("cpu"))
    cache = allocate_cache(decoder.spec, 2, 16, dtype=torch.float32, device=torch.device("cpu"))
    segments = split_layers(6, exits)
    heads = random_heads(decoder, exits, VOCAB)
    rows = DummyRows(decoder, cache, EagerRunner(decoder, segments, cache), heads)
    plain, drafting = rows.plain_step(3), rows.drafting_step(3)
    first, drafted = plain(), drafting()
    assert [len(result.token_ids) for result in first] == [1, 1, 1]  # type: ignore[attr-defined]
    assert sum(len(result.drafts) for result in drafted) == rows.num_pending[3] - 3  # type: ignore[attr-defined]
    assert rows.num_pending[3] > 3
    for _ in range(40):
        assert plain() == first, "at the same place again"
        drafting()
    assert rows.num_pending[3] > 3, "it does not stop drafting because nothing stands"


def test_dummy_rows_cost_what_rows_that_ask_nothing_of_their_logits_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.worker.sampler.process", lambda *_: pytest.fail("is paid for"))
    decoder = load_tiny(write_tiny_llama(tmp_path), TorchOps("cpu"))
    cache = allocate_cache(decoder.spec, 2, 16, dtype=torch.float32, device=torch.device("cpu"))
    runner = EagerRunner(decoder, split_layers(6, [2]), cache)
    rows = DummyRows(decoder, cache, runner, random_heads(decoder, [2], VOCAB))
    for step in (rows.plain_step(3), rows.drafting_step(3), *rows.plain_steps(3)):
        step()


def test_a_second_start_reads_what_the_first_measured(tmp_path: Path) -> None:
    first, second = PlayedRunner(), PlayedRunner()
    measured = cost_of(first, tmp_path)
    assert cost_of(second, tmp_path) == measured
    assert set(first.counts) == set(TIMED_COUNTS)
    assert set(second.counts) == {1}, "plain steps only, to see whether it still holds"
    assert len(second.counts) <= 6
    assert 0 < measured[0] < measured[1] < measured[2]


def test_what_a_busy_machine_measured_counts_until_a_start_is_clearly_faster(
    tmp_path: Path,
) -> None:
    busy = cost_of(PlayedRunner(load=2.0), tmp_path)
    assert cost_of(PlayedRunner(load=1.6), tmp_path) == busy, "near enough"
    quiet = cost_of(PlayedRunner(), tmp_path)
    assert quiet == pytest.approx([each / 2 for each in busy])
    assert cost_of(PlayedRunner(load=3.0), tmp_path) == quiet, "a slower one says nothing"
    assert cost_of(PlayedRunner(), tmp_path) == quiet


def test_a_start_waits_for_few_slow_steps_to_see_whether_a_measurement_holds(
    tmp_path: Path,
) -> None:
    slow = cost_of(PlayedRunner(load=100.0), tmp_path)
    again = PlayedRunner(load=100.0)
    assert cost_of(again, tmp_path) == slow
    assert again.counts == [1, 1] * 2, "two segments, two steps of 0.14 s"


def _other_facts(_: Path) -> str:
    return "b"


def _age(directory: Path) -> str:
    (path,) = directory.iterdir()
    os.utime(path, (0, 0))
    return "a"


def _break(directory: Path) -> str:
    (path,) = directory.iterdir()
    path.write_text('{"segment 0": [1]}')
    return "a"


@pytest.mark.parametrize("change", [_other_facts, _age, _break])
def test_what_is_stale_is_measured_again(tmp_path: Path, change: Callable[[Path], str]) -> None:
    cost_of(PlayedRunner(), tmp_path)
    runner = PlayedRunner()
    cost_of(runner, tmp_path, change(tmp_path))
    assert set(runner.counts) == set(TIMED_COUNTS)


def test_what_a_machine_took_that_got_ever_busier_is_not_kept(tmp_path: Path) -> None:
    cost_of(PlayedRunner(growth=1.05), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_steps_that_do_not_fit_the_memory_are_left_out(tmp_path: Path) -> None:
    runner = PlayedRunner(most_tokens=8)
    one, five, many = cost_of(runner, tmp_path)
    assert one < five < many
    assert set(runner.counts) == {count for count in TIMED_COUNTS if count <= 8}


def test_what_only_a_disturbance_can_have_taken_is_left_out() -> None:
    sound = {1: 1.0, 2: 1.1, 4: 1.4, 8: 2.5, 16: 5.0}
    assert plausible(sound) == sound
    assert plausible({1: 3.0, 2: 1.1, 4: 1.4}) == {1: 1.1, 2: 1.1, 4: 1.4}
    assert plausible({1: 1.0, 2: 9.0, 4: 9.5, 8: 9.9}) == {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}


def test_a_disk_that_takes_nothing_costs_only_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert min(cost_of(PlayedRunner(), blocked / "costs")) > 0
