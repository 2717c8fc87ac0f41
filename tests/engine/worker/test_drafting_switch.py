"""Drafting as a whole is switched off if it does not pay."""

from dataclasses import replace

import pytest

from engine.policy_reason import PolicyReason
from engine.worker.drafting_switch import DraftingSwitch, StepOutcome

PLAIN_S = 0.98  # seconds of a plain step of one row


def outcome(committed: int, expected: float, seconds: float, took: float = 0.0) -> StepOutcome:
    """The outcome of one row's step, which took as long as its parts unless `took` is given."""
    return StepOutcome(
        num_rows=1,
        num_committed=committed,
        num_expected=expected,
        modelled_s=seconds,
        took_s=took or seconds,
    )


def run(
    switch: DraftingSwitch, committed: int, expected: float, seconds: float, took: float = 0.0
) -> None:
    """Run one step of one row, with drafts if drafting is on."""
    if switch.is_on and not switch.wants_control:
        switch.observe(PLAIN_S, outcome(committed, expected, seconds, took))
    else:
        switch.pass_by(PLAIN_S, PLAIN_S)


def test_pauses_grow_while_it_never_pays() -> None:
    switch = DraftingSwitch()
    drafting = 0
    for _ in range(2000):
        drafting += switch.is_on
        run(switch, 1, 1.0, 1.02)
    assert drafting < 200


def test_a_few_bad_steps_are_chance_while_the_chances_promise_a_gain() -> None:
    switch = DraftingSwitch()
    for _ in range(8):
        run(switch, 1, 1.6, 1.1)
    assert switch.is_on
    for _ in range(40):
        run(switch, 2, 1.6, 1.1)
    assert switch.report().reason is PolicyReason.DRAFTING


def test_promises_that_are_never_kept_end_it() -> None:
    switch = DraftingSwitch()
    for _ in range(80):
        run(switch, 1, 1.3, 1.1)
        if not switch.is_on:
            break
    assert switch.report().reason is PolicyReason.POOR_ACCEPTANCE
    assert not switch.report().is_drafting


@pytest.mark.parametrize(
    ("dearer", "expected"),
    [(0.12, 1.24), (0.25, 1.5), (0.48, 1.55), (0.65, 1.5), (0.65, 1.7), (1.0, 3.0)],
)
def test_heads_that_promise_much_and_bring_nothing_cost_little_of_a_short_answer(
    dearer: float, expected: float
) -> None:
    switch = DraftingSwitch()
    seconds = 0.0
    for _ in range(128):
        step = 1.0 + dearer * switch.is_on
        seconds += step
        run(switch, 1, expected, step)
    assert seconds < 128 / 0.98
    assert not switch.is_on


def test_a_heavy_loss_puts_off_the_next_attempt_but_not_for_ever() -> None:
    switch = DraftingSwitch()
    run(switch, 1, 4.5, 9.0)
    assert not switch.is_on
    assert "tries again in 785 steps" in switch.report().text
    for _ in range(785):
        run(switch, 1, 1.0, 1.0)
    assert switch.report().reason is PolicyReason.PROBING
    run(switch, 1, 4.5, 90.0)
    assert "tries again in 1024 steps" in switch.report().text


def test_a_loss_at_the_beginning_is_limited_whatever_is_promised() -> None:
    """Half of the drafts are accepted, and they cost twice what they bring."""
    switch = DraftingSwitch()
    seconds, tokens = 0.0, 0
    for step in range(400):
        committed = 1 + step % 2 if switch.is_on else 1
        spent = 2.2 if switch.is_on else PLAIN_S
        run(switch, committed, 3.0, spent)
        seconds, tokens = seconds + spent, tokens + committed
    assert seconds < 1.02 * tokens * PLAIN_S


def test_a_loss_at_the_beginning_ends_nothing_while_drafts_stand_or_few_were_hoped_for() -> None:
    switch = DraftingSwitch()
    for step in range(15):  # one of four drafts is accepted, three of four were expected
        run(switch, 2 if step % 4 == 3 else 1, 1.75, 1.4)
    assert switch.is_on
    switch = DraftingSwitch()
    for _ in range(3):
        run(switch, 1, 1.5, 1.4)
    assert switch.is_on


def test_work_that_no_part_is_charged_with_counts() -> None:
    """By its parts drafting is 1.3 times as fast, but whole steps take half as long again."""
    switch = DraftingSwitch()
    for _ in range(60):
        run(switch, 2, 2.0, 1.5, took=2.3)
        if not switch.is_on:
            break
    assert not switch.is_on
    assert switch.report().reason is PolicyReason.COSTS_MORE


def test_plain_steps_that_take_longer_than_their_parts_count_as_well() -> None:
    switch = DraftingSwitch()
    for number in range(600):
        if number < 20 or switch.wants_control:
            switch.pass_by(PLAIN_S, 1.3 * PLAIN_S)
        else:
            switch.observe(PLAIN_S, outcome(2, 2.0, 2.2))
    assert switch.is_on
    assert switch.speedup == pytest.approx(2 * 1.3 * PLAIN_S / 2.2, rel=0.03)


@pytest.mark.parametrize(("committed", "seconds", "most"), [(3, 1.2, 6), (2, 1.9, 64)])
def test_a_control_is_due_the_sooner_the_less_it_loses(
    committed: int, seconds: float, most: int
) -> None:
    switch = DraftingSwitch()
    controls, spent = 0, 0.0
    for _ in range(1000):
        if switch.wants_control:
            controls += 1
            spent += PLAIN_S
            switch.pass_by(PLAIN_S, PLAIN_S)
        else:
            spent += seconds
            switch.observe(PLAIN_S, outcome(committed, float(committed), seconds))
    assert 3 <= controls <= most
    assert controls * (PLAIN_S - seconds / committed) < 0.004 * spent


@pytest.mark.parametrize("num_rows", [1, 3, 64])
def test_finding_no_draft_at_no_cost_goes_on(num_rows: int) -> None:
    """Look-ups do not delay a GPU whose passes run ahead."""
    switch = DraftingSwitch()
    for _ in range(1000):
        switch.observe_free(PLAIN_S, num_rows, PLAIN_S)
        assert switch.is_on


def test_finding_no_draft_at_no_cost_tells_what_plain_steps_take() -> None:
    """So no control is needed, and drafts that come then are compared with what is true."""
    switch = DraftingSwitch()
    for _ in range(20):
        switch.pass_by(PLAIN_S, 1.5 * PLAIN_S)
    for _ in range(200):
        assert not switch.wants_control
        switch.observe_free(PLAIN_S, 1, PLAIN_S)
    for _ in range(6):
        switch.observe(PLAIN_S, outcome(2, 2.0, 2.8 * PLAIN_S))
    assert not switch.is_on


def test_finding_no_draft_at_no_cost_is_no_sign_that_drafts_pay() -> None:
    """Pauses grow all the same."""
    switch, pauses = DraftingSwitch(), []
    for step in range(20, 4000):
        if not switch.is_on:
            switch.pass_by(PLAIN_S, PLAIN_S)
        elif step % 40:
            switch.observe_free(PLAIN_S, 16, PLAIN_S)
        else:
            switch.observe(PLAIN_S, replace(outcome(17, 17.0, 3.0), num_rows=16))
            pauses += [] if switch.is_on else [switch.report().pause]
    assert 32 <= pauses[0] < 64 < 256 < pauses[-1]


def test_steps_that_commit_nothing_are_judged_like_others() -> None:
    """A step commits nothing if every row of the batch meets a dead end."""
    switch = DraftingSwitch()
    for _ in range(8):
        switch.pass_by(PLAIN_S, PLAIN_S)
    for _ in range(16):
        assert not switch.wants_control
        switch.observe(PLAIN_S, outcome(0, 1.0, 0.01))
    assert switch.wants_control, "nothing is lost by one"


def test_another_attempt_ends_soon_where_even_the_promise_does_not_pay() -> None:
    switch = DraftingSwitch()
    attempts: list[int] = []  # number of steps of each
    was_on = False
    for _ in range(400):
        if switch.is_on and not was_on:
            attempts.append(0)
        was_on = switch.is_on
        attempts[-1] += was_on
        run(switch, 1, 1.1, 1.0, took=1.3)
    assert attempts[0] <= 16
    assert attempts[1:3] == [4, 4]


def test_after_an_attempt_without_hope_the_next_waits_until_its_loss_is_small() -> None:
    switch = DraftingSwitch()
    lost = 0.0
    while switch.is_on:
        switch.observe(PLAIN_S, outcome(1, 1.1, 1.4 * PLAIN_S))
        lost += 0.4
    assert switch.report().pause > 80 * lost


def test_the_first_attempt_ends_soon_where_the_promise_is_clearly_too_little() -> None:
    switch = DraftingSwitch()
    for _ in range(4):
        run(switch, 1, 1.1, 1.4)
    assert not switch.is_on
    assert switch.report().reason is PolicyReason.COSTS_MORE


def test_what_comes_although_little_was_promised_goes_on() -> None:
    switch = DraftingSwitch()
    for _ in range(60):
        run(switch, 3, 1.05, 1.4)
    assert switch.report().reason is PolicyReason.DRAFTING


def test_controls_lose_little_of_what_drafting_gains() -> None:
    switch = DraftingSwitch()
    for _ in range(2):
        switch.pass_by(PLAIN_S, PLAIN_S)
    steps = 0
    while not switch.wants_control:
        steps += 1
        switch.observe(PLAIN_S, outcome(2, 2.0, 1.5))
    lost = 3 * (1.0 - 1.0 / switch.speedup)  # the last of three is measured
    assert lost == pytest.approx(0.003 * steps, rel=0.1)


@pytest.mark.parametrize(("num_between", "share"), [(0, 0.05), (3, 0.2), (40, 0.3)])
def test_a_rare_plain_step_counts_for_those_that_it_stands_for(
    num_between: int, share: float
) -> None:
    switch = DraftingSwitch()
    for _ in range(40):
        switch.pass_by(PLAIN_S, PLAIN_S)
    for _ in range(num_between):
        switch.observe(PLAIN_S, outcome(2, 2.0, 1.5))
    switch.pass_by(PLAIN_S, 1.2 * PLAIN_S)
    for _ in range(1000):  # until nothing of before counts
        switch.observe(PLAIN_S, outcome(2, 2.0, 1.5))
    assert switch.speedup == pytest.approx(2 * PLAIN_S * 1.2**share / 1.5)


@pytest.mark.parametrize(
    ("share", "expected", "is_soon"), [(0.002, 1.004, True), (0.1, 1.15, False)]
)
def test_what_loses_little_while_it_lasts_is_tried_again_soon(
    share: float, expected: float, is_soon: bool
) -> None:
    switch, pauses = DraftingSwitch(), []
    for _ in range(2000):
        was_on = switch.is_on
        run(switch, 1, expected, PLAIN_S * (1.0 + share))
        if was_on and not switch.is_on:
            pauses.append(switch.report().pause)
    assert len(pauses) > 3
    assert (max(pauses) <= 64) is is_soon
