"""The estimate of a step follows drafts as they come and go."""

import pytest

from engine.worker.row import Alternate, Draft
from engine.worker.step_estimate import StepEstimate

DRAFTS = [Draft(7, None, 0.5, 0.5), Draft(8, None, 0.5, 0.25)]
OTHER = Alternate(9, 0, 1, 0.25, 0.125, spare=-1)


def test_drafts_and_alternates_count_until_they_are_removed() -> None:
    step = StepEstimate(num_tokens=2, expected_tokens=2.0)
    step.add([*DRAFTS, OTHER])
    assert (step.num_tokens, step.expected_tokens) == (5, pytest.approx(2.875))
    step.remove([DRAFTS[1], OTHER])
    assert (step.num_tokens, step.expected_tokens) == (3, pytest.approx(2.5))


def test_every_spare_slot_is_handed_out_once() -> None:
    step = StepEstimate(num_tokens=1, expected_tokens=1.0, num_spare=3)
    assert sorted(step.take_spare() for _ in range(3)) == [0, 1, 2]
    assert step.num_spare == 0
