"""Tokens of a step are delivered evenly, one by one, and never later than the next step's."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from engine.errors import EngineFailed
from engine.paced_slot import PacedSlot
from engine.request import FinishReason, RequestOutput


@dataclass
class Call:
    at: float
    call: Callable[[], None]
    is_cancelled: bool = False

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class FakeClock:
    now: float = 0.0
    calls: list[Call] = field(default_factory=list)

    def call_later(self, delay: float, call: Callable[[], None]) -> Call:
        self.calls.append(Call(self.now + delay, call))
        return self.calls[-1]

    def advance_to(self, then: float) -> None:
        while due := [each for each in self.calls if each.at <= then and not each.is_cancelled]:
            first = min(due, key=lambda each: each.at)
            self.calls.remove(first)
            self.now = first.at
            first.call()
        self.now = then


class WatchedSlot(PacedSlot):
    """A slot that notes when each token enters."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=lambda: clock.now, call_later=clock.call_later)
        self.entered: list[tuple[int, float]] = []
        self._its_clock = clock

    def put(self, output: RequestOutput) -> None:
        self.entered += [(token, self._its_clock.now) for token in output.token_ids]
        super().put(output)


def step(*token_ids: int, reason: FinishReason | None = None) -> list[RequestOutput]:
    return [
        RequestOutput(
            request_id="r",
            text="x",
            token_ids=(token_id,),
            num_prompt_tokens=1,
            num_output_tokens=token_id,
            finish_reason=reason if token_id == token_ids[-1] else None,
        )
        for token_id in token_ids
    ]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def slot(clock: FakeClock) -> WatchedSlot:
    """A slot that has had two steps, a second apart."""
    slot = WatchedSlot(clock)
    slot.put_step(step(1))
    clock.advance_to(1.0)
    slot.put_step(step(2))
    return slot


def test_a_steps_tokens_enter_evenly_until_the_next_step(
    clock: FakeClock, slot: WatchedSlot
) -> None:
    clock.advance_to(2.0)
    slot.put_step(step(3, 4, 5, 6))
    clock.advance_to(3.0)
    assert slot.entered[2:] == [(3, 2.0), (4, 2.25), (5, 2.5), (6, 2.75)]


def test_an_early_next_step_finds_nothing_held_back(clock: FakeClock, slot: WatchedSlot) -> None:
    clock.advance_to(2.0)
    slot.put_step(step(3, 4, 5, 6))
    clock.advance_to(2.3)
    slot.put_step(step(7))
    assert slot.entered[2:] == [(3, 2.0), (4, 2.25), (5, 2.3), (6, 2.3), (7, 2.3)]
    clock.advance_to(9.0)
    assert len(slot.entered) == 7, "nothing enters twice"


def test_the_last_step_of_a_request_waits_for_nothing(clock: FakeClock, slot: WatchedSlot) -> None:
    clock.advance_to(2.0)
    slot.put_step(step(3, 4))
    clock.advance_to(2.1)
    slot.put_step(step(5, 6, 7, reason=FinishReason.LENGTH))
    assert slot.entered[3:] == [(4, 2.1), (5, 2.1), (6, 2.1), (7, 2.1)]


def test_a_pause_is_not_taken_for_a_steps_time(clock: FakeClock, slot: WatchedSlot) -> None:
    clock.advance_to(60.0)  # a long pause, as when a worker is replaced
    slot.put_step(step(3, 4))
    clock.advance_to(62.0)
    assert slot.entered[3][1] == pytest.approx(60.0 + (0.7 + 0.3 * 2.0) / 2)


def test_a_failure_comes_after_what_was_held_back(clock: FakeClock, slot: WatchedSlot) -> None:
    clock.advance_to(2.0)
    slot.put_step(step(3, 4))
    slot.fail(EngineFailed("gone"))
    output = slot.take()
    assert output is not None
    assert output.token_ids == (1, 2, 3, 4)
    with pytest.raises(EngineFailed):
        slot.take()
