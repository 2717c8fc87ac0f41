"""Online training keeps to its share of the time, and a failure ends it without harm."""

from pathlib import Path

import pytest
import torch
from learning import Teacher, first_head, weights_of
from tiny_model import load_tiny, random_heads, write_tiny_llama

from engine.model.decoder import Decoder
from engine.model.ops.torch_ops import TorchOps
from engine.worker.learning.online_trainer import OnlineTrainer, _draw_newer

pytestmark = pytest.mark.torch


class TickingClock:
    """A clock that advances by a fixed time whenever it is read."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self._seconds = seconds

    def __call__(self) -> float:
        self.now += self._seconds
        return self.now


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    directory: Path = tmp_path_factory.mktemp("tiny")
    return load_tiny(write_tiny_llama(directory), TorchOps("cpu"))


def trainer_of(decoder: Decoder, share: float, clock: TickingClock) -> OnlineTrainer:
    heads = random_heads(decoder, [2], 40)
    rows = decoder.lm_head_rows(heads.token_ids)
    trainer = OnlineTrainer(heads, {2: weights_of(first_head(heads))}, rows, share, clock)
    Teacher(decoder, heads).fill(trainer._examples, 512)
    return trainer


def test_pieces_take_their_share_of_the_time(decoder: Decoder) -> None:
    clock = TickingClock(0.004)
    trainer = trainer_of(decoder, 0.1, clock)
    learned = 0.0
    for _ in range(400):
        trainer.note_step(0.01)
        trainer.learn(is_idle=False)
        learned += trainer.take_report().seconds
    assert 0.05 * 4.0 < learned <= 0.112 * 4.0, "a tenth of all, a ninth of the steps' four seconds"


def test_nothing_is_done_before_there_is_something_to_learn_from(decoder: Decoder) -> None:
    trainer = trainer_of(decoder, 0.5, TickingClock(0.001))
    trainer._examples.num_written = 100  # too few
    trainer.note_step(10.0)
    assert not trainer.learn(is_idle=True)
    assert trainer.take_report().num_updates == 0


def test_updates_stop_where_no_traffic_says_whether_they_help(decoder: Decoder) -> None:
    trainer = trainer_of(decoder, 0.5, TickingClock(0.0))
    trainer.note_step(10.0)
    num_pieces = 0
    while trainer.learn(is_idle=True):
        num_pieces += 1
        assert num_pieces < 10_000, "goes on for ever"
    assert trainer.take_report().num_updates > 0


def test_sequences_of_one_token_are_passed_over(decoder: Decoder) -> None:
    heads = random_heads(decoder, [2], 40)
    rows = decoder.lm_head_rows(heads.token_ids)
    trainer = OnlineTrainer(heads, {2: weights_of(first_head(heads))}, rows, 0.5, TickingClock(0.0))
    teacher = Teacher(decoder, heads)
    for _ in range(10):
        trainer._examples.add(teacher.positions(16), [None] * 16)
    trainer.note_step(10.0)
    assert not any(trainer.learn(is_idle=True) for _ in range(50)), "none follows another one"
    teacher.fill(trainer._examples, 1024)
    for _ in range(500):
        trainer.note_step(1.0)
        trainer.learn(is_idle=True)
    assert trainer.take_report().num_updates > 0
    assert not trainer.recorder.is_broken


def test_an_update_outlives_the_examples_that_it_began_with(decoder: Decoder) -> None:
    trainer = trainer_of(decoder, 0.5, TickingClock(0.0))
    trainer._piece = 8  # so that an update takes several pieces
    trainer.note_step(10.0)
    assert trainer.learn(is_idle=True)
    teacher = Teacher(decoder, random_heads(decoder, [2], 40), seed=1)
    teacher.fill(trainer._examples, trainer._examples.capacity + 512)
    for _ in range(500):
        trainer.note_step(1.0)
        trainer.learn(is_idle=True)
    assert not trainer.recorder.is_broken
    assert trainer.take_report().num_updates > 0


def test_a_fault_ends_the_learning_and_nothing_else(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(decoder, 0.5, TickingClock(0.001))
    trainer.note_step(10.0)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trainer._heads[0], "accumulate_gradient", fail)
    assert not trainer.learn(is_idle=True)
    assert "heads learn no more" in caplog.text
    trainer.note_step(1.0)
    assert not trainer.recorder.is_open
    assert not trainer.learn(is_idle=True)


@torch.inference_mode()
def test_a_step_that_cannot_be_recorded_goes_on(decoder: Decoder) -> None:
    trainer = trainer_of(decoder, 0.5, TickingClock(0.001))
    nothing = torch.empty(0)
    trainer.recorder.begin()
    trainer.recorder.see_verified([], [None], nothing, nothing)  # type: ignore[list-item]
    assert trainer.recorder.is_broken


def test_trials_that_bring_little_are_followed_by_ever_longer_pauses(decoder: Decoder) -> None:
    trainer = trainer_of(decoder, 0.5, TickingClock(0.0))
    pauses = []
    for gain in (0.0, 0.01, 0.0, 0.02, 0.0, 0.0, 0.1, 0.0, 0.0):
        trainer._rest_after(gain)
        pauses.append(trainer._resumes_at - trainer._examples.num_written)
        trainer._resumes_at = 0
    written = trainer._examples.num_written
    assert pauses == [0, 256, 512, 1024, 2048, 2048, -written, 0, 256]


def test_newer_examples_are_studied_more_often() -> None:
    places = _draw_newer(100, 5000)
    assert set(places.tolist()) == set(range(100)), "all of them, though"
    assert 0.65 < float((places >= 50).float().mean()) < 0.76, "1 / sqrt(2) are of the newer half"


def test_every_held_out_example_is_tried_at_one_depth(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(decoder, 0.5, TickingClock(0.0))
    trainer._training_end = 256
    tried: list[int] = []
    monkeypatch.setattr(
        trainer._heads[0], "evaluate", lambda _, runs: tried.extend(runs[-1].tolist())
    )
    assert all(trainer._trial())
    assert sorted(tried) == list(range(256, 512))
