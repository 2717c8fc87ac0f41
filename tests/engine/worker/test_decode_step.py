"""What a step tells those who watch it: its drafter and its recorder."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny_model import VOCAB, sequence_start
from torch import Tensor

from benchmarks.scripted import Script
from engine.model.decoder import Decoder
from engine.plan import RowPlan, RowResult
from engine.worker.decode_step import DecodeStep
from engine.worker.exit_evaluator import Arrival
from engine.worker.kv_cache import allocate_cache
from engine.worker.row import Row
from engine.worker.sequence_state import SequenceState
from engine.worker.step_estimate import StepEstimate

pytestmark = pytest.mark.torch


class Clock:
    """A clock that advances by a second whenever it is read."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Listener(Script):
    """Notes what it is told, and drafts one token at the first exit."""

    def __init__(self, *, drafts: bool) -> None:
        super().__init__([0, 2], {(5, 9, 2): [5, 9, 2, 4, 4]}, VOCAB, lambda _: True)
        self.drafts = drafts
        self.segments: list[tuple[int, int, float]] = []  # number, tokens, seconds

    def begin(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        self.before = replace(estimate)
        return self.drafts

    def evaluate_exit(
        self, exit_index: int, arrivals: Sequence[Arrival], hidden: Tensor, estimate: StepEstimate
    ) -> None:
        for arrival in arrivals:
            if exit_index == 0 and arrival.row.num_room:
                self.append(arrival.row, 0)

    def note_segment(
        self, segment: int, num_tokens: int, seconds: float, estimate: StepEstimate
    ) -> None:
        self.segments.append((segment, num_tokens, seconds))

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        self.last_seconds = estimate.last_seconds


def step_with(decoder: Decoder, listener: Listener) -> None:
    """Run a step of a row that decodes, and a chunk of a prompt that does not end in it."""
    cache = allocate_cache(decoder.spec, 4, 16, dtype=torch.float32, device=torch.device("cpu"))
    step = DecodeStep(
        decoder, cache, 16, drafter=listener, spare_slots=range(48, 51), clock=Clock()
    )
    states = [SequenceState(sequence_start(i, ids)) for i, ids in enumerate(([5, 9, 2], [7, 8, 3]))]
    plans = [
        RowPlan(0, 2, 1, [0], max_draft_tokens=1, is_decoding=True),
        RowPlan(1, 0, 2, [1], max_draft_tokens=0, is_decoding=False),
    ]
    with torch.inference_mode():
        step.run(plans, states)


@pytest.mark.parametrize("drafts", [False, True])
def test_a_drafter_is_told_what_a_step_has_before_any_draft(decoder: Decoder, drafts: bool) -> None:
    listener = Listener(drafts=drafts)
    step_with(decoder, listener)
    assert listener.before == StepEstimate(num_tokens=3, expected_tokens=1.0, num_spare=3)


def test_a_drafter_is_told_what_every_part_takes(decoder: Decoder) -> None:
    """Every reading of the clock takes a second here. The segment before layer 0 is none."""
    straight, drafting = Listener(drafts=False), Listener(drafts=True)
    for listener in (straight, drafting):
        step_with(decoder, listener)
        assert listener.last_seconds == 1.0
    assert straight.segments == [(1, 3, 1.0), (2, 3, 1.0)]
    assert drafting.segments == [(1, 4, 1.0), (2, 4, 1.0)]
