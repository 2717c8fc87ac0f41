"""Drafting as a whole is held against what came of it."""

import pytest

from engine.policy_reason import PolicyReason
from engine.worker.drafting_switch import DraftingSwitch

PLAIN_S = 0.98  # of one row


def test_pauses_grow_while_it_never_pays() -> None:
    switch = DraftingSwitch()
    drafting = 0
    for _ in range(2000):
        drafting += switch.is_on
        switch.observe(PLAIN_S, 1, 1, 1.0, 1.02)
    assert drafting < 200


def test_a_few_bad_steps_are_chance_while_the_chances_promise_a_gain() -> None:
    switch = DraftingSwitch()
    for _ in range(12):
        switch.observe(PLAIN_S, 1, 1, 1.6, 1.1)
    assert switch.is_on
    for _ in range(40):
        switch.observe(PLAIN_S, 1, 2, 1.6, 1.1)
    assert switch.report("").reason is PolicyReason.DRAFTING


def test_promises_that_are_never_kept_end_it() -> None:
    switch = DraftingSwitch()
    for _ in range(80):
        switch.observe(PLAIN_S, 1, 1, 1.3, 1.1)
        if not switch.is_on:
            break
    assert switch.report("").reason is PolicyReason.POOR_ACCEPTANCE
    assert not switch.report("").is_drafting


@pytest.mark.parametrize("dearer", [0.12, 0.25, 1.0])
def test_heads_that_promise_much_and_bring_nothing_cost_little_of_a_short_answer(
    dearer: float,
) -> None:
    switch = DraftingSwitch()
    seconds = 0.0
    for _ in range(128):
        step = 1.0 + dearer * switch.is_on
        seconds += step
        switch.observe(PLAIN_S, 1, 1, 1.0 + 2 * dearer, step)
    assert seconds < 128 / 0.98
    assert switch.report("").reason is PolicyReason.POOR_ACCEPTANCE


def test_a_heavy_loss_puts_off_the_next_attempt_but_not_for_ever() -> None:
    switch = DraftingSwitch()
    switch.observe(PLAIN_S, 1, 1, 4.5, 9.0)
    assert not switch.is_on
    assert "tries again in 785 steps" in switch.report("").text
    for _ in range(785):
        switch.observe(PLAIN_S, 1, 1, 1.0, 1.0)
    assert switch.report("").reason is PolicyReason.PROBING
    switch.observe(PLAIN_S, 1, 1, 4.5, 90.0)
    assert "tries again in 1024 steps" in switch.report("").text


def test_a_loss_at_the_beginning_ends_nothing_while_drafts_stand_or_few_were_hoped_for() -> None:
    switch = DraftingSwitch()
    for step in range(15):  # one of four drafts stands where three of four were hoped for
        switch.observe(PLAIN_S, 1, 2 if step % 4 == 3 else 1, 1.75, 1.4)
    assert switch.is_on
    switch = DraftingSwitch()
    for _ in range(5):
        switch.observe(PLAIN_S, 1, 1, 1.5, 1.4)
    assert switch.is_on
