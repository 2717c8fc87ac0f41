"""Step times are measured separately for each kind of step and each batch size."""

import pytest

from engine.worker.step_times import StepTimes


def test_steps_with_drafts_count_as_they_took_until_it_is_known_what_they_take() -> None:
    times = StepTimes()
    assert times.drafting(1.0, 2.0) == pytest.approx(2.0)
    for _ in range(40):
        times.drafting(1.0, 2.0)
    assert times.knows_drafting
    assert times.drafting(1.0, 2.4) == pytest.approx(2.0, rel=0.05)


def test_steps_that_came_to_nothing_always_count_as_they_took_but_for_pauses() -> None:
    times = StepTimes()
    for took in [1.0, 1.0, 1.0, 1.6] * 20:
        assert times.straight(1.0, took) == pytest.approx(took)
    assert times.straight(1.0, 50.0) < 2.5
    assert not times.knows_drafting


def test_steps_with_drafts_are_compared_with_plain_ones_as_both_were_measured() -> None:
    times = StepTimes()
    assert times.in_plain_steps(3.0, 2.0) == 1.5
    for _ in range(60):
        times.note_plain(1.0, 1.5)
    assert times.in_plain_steps(3.0, 2.0) == pytest.approx(1.5), "steps with drafts were not"
    for _ in range(60):
        times.drafting(1.0, 3.0)
    assert times.in_plain_steps(3.0, 2.0) == pytest.approx(3.0, rel=0.05)


def test_kinds_do_not_mix_and_another_size_begins_with_what_is_known() -> None:
    times = StepTimes()
    for _ in range(40):
        times.note_plain(1.0, 1.5)
        times.drafting(1.0, 3.0)
    assert times.plain(2.0) == pytest.approx(3.0, rel=0.05)
    other = StepTimes(times)
    assert other.plain(2.0) == times.plain(2.0)
    assert not other.has_seen_plain
    for _ in range(6):
        other.note_plain(1.0, 0.8)
    assert other.plain(1.0) == pytest.approx(0.8, rel=0.15), "and forgets it fast"
    assert times.plain(1.0) == pytest.approx(1.5, rel=0.05)
