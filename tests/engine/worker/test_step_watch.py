"""The time that steps take, on a simulated clock."""

import pytest

from engine.worker.step_watch import StepWatch


class Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take(watch: StepWatch, clock: Clock, seconds: float, *, is_plain: bool = True) -> float:
    watch.begin(is_idle=True)
    clock.now += seconds
    return watch.end(is_plain=is_plain)


def test_a_step_takes_what_passed_since_the_one_before_unless_that_was_a_pause(
    clock: Clock,
) -> None:
    watch = StepWatch(clock, is_queued=False)
    assert take(watch, clock, 0.01) == pytest.approx(0.01), "nothing was before"
    clock.now += 0.0004
    assert take(watch, clock, 0.01) == pytest.approx(0.0104)
    clock.now += 0.5
    assert take(watch, clock, 0.01) == pytest.approx(0.01)


def test_without_a_queue_every_part_tells(clock: Clock) -> None:
    watch = StepWatch(clock, is_queued=False)
    watch.begin(is_idle=True)
    assert watch.note_pass(is_ahead=False)
    assert watch.part(0.3) == 0.3
    watch.begin(is_idle=True)
    assert not watch.note_pass(is_ahead=True)
    assert watch.part(0.3) is None
    watch.begin(is_idle=True)
    assert watch.part(0.3) == 0.3, "nothing has run ahead this time"


@pytest.mark.parametrize("is_queued", [False, True])
def test_a_plain_step_tells_after_two_others(clock: Clock, is_queued: bool) -> None:
    """After one with drafts it still has the work that those left, and so has the next."""
    watch = StepWatch(clock, is_queued=is_queued)
    take(watch, clock, 0.01, is_plain=False)
    for _ in range(2):
        watch.begin(is_idle=True)
        assert not watch.tells_of_plain_steps
        watch.end(is_plain=True)
    watch.begin(is_idle=True)
    assert watch.tells_of_plain_steps


def test_on_a_device_a_plain_step_tells_if_it_ran_ahead(clock: Clock) -> None:
    watch = StepWatch(clock, is_queued=True)
    take(watch, clock, 0.01, is_plain=False)
    watch.begin(is_idle=True)
    watch.note_pass(is_ahead=True)
    assert watch.tells_of_plain_steps
    watch.end(is_plain=False)
    watch.begin(is_idle=True)
    assert not watch.tells_of_plain_steps


def test_where_passes_run_ahead_one_that_did_not_tells_nothing_for_long(clock: Clock) -> None:
    """It does not while the batch changes; only if it never does, as for eager launches."""
    watch = StepWatch(clock, is_queued=True)
    watch.begin(is_idle=True)
    watch.note_pass(is_ahead=True)
    watch.end(is_plain=True)
    tells = []
    for _ in range(17):
        watch.begin(is_idle=True)
        watch.note_pass(is_ahead=False)
        tells.append(watch.tells_of_plain_steps)
        watch.end(is_plain=True)
    assert tells == [False] * 16 + [True]


def test_on_a_device_few_passes_tell_what_their_parts_take_and_none_that_ran_ahead(
    clock: Clock,
) -> None:
    watch = StepWatch(clock, is_queued=True)
    told = []
    for number in range(40):
        watch.begin(is_idle=True)
        told.append(watch.note_pass(is_ahead=number < 20))
        clock.now += 0.01
        assert (watch.part(0.0) is not None) == told[-1]
        watch.end(is_plain=True)
    assert not any(told[:20])
    assert told[20], "it is overdue"
    assert sum(told[20:]) == 3


def test_what_runs_while_a_step_begins_leaves_no_part_to_be_told(clock: Clock) -> None:
    watch = StepWatch(clock, is_queued=True)
    watch.begin(is_idle=False)
    watch.launch(1, 0.01)
    clock.now += 0.03
    assert watch.part(0.0) is None
