"""What evaluating an exit has brought, and when to try it again."""

import pytest

from engine.worker.exit_account import ExitAccount


def test_worth_follows_what_evaluations_bring() -> None:
    account = ExitAccount()
    for _ in range(200):
        account.add(gain=0.5, offered=1.0, pays=False)
    assert account.worth == pytest.approx(0.5, abs=0.01)
    for _ in range(200):
        account.add(gain=0.0, offered=1.0, pays=False)
    assert account.worth == pytest.approx(0.0, abs=0.01)


def test_many_rows_at_once_teach_as_much_as_one_row_many_times() -> None:
    one, many = ExitAccount(), ExitAccount()
    for _ in range(8):
        one.add(gain=0.5, offered=1.0, pays=False)
    many.add(gain=4.0, offered=8.0, pays=False)
    assert many.worth == pytest.approx(one.worth)


def test_a_trial_that_was_worth_its_time_is_soon_followed_by_another_but_not_at_once() -> None:
    account = ExitAccount()
    account.add(gain=0.9, offered=1.0, pays=True)
    for _ in range(8):
        assert not account.is_due(share=2.0)
        account.leave_out()
    assert account.is_due(share=2.0)
    account.add(gain=0.0, offered=1.0, pays=False)
    for _ in range(399):
        account.leave_out()
    assert not account.is_due(share=2.0)
    account.leave_out()
    assert account.is_due(share=2.0)


def test_the_first_trial_is_made_soon_unless_it_costs_much() -> None:
    account = ExitAccount()
    for _ in range(8):
        assert not account.is_due(share=1.4)
        account.leave_out()
    assert account.is_due(share=1.4)
    assert not account.is_due(share=1.6)


def test_a_costly_evaluation_is_tried_again_more_rarely() -> None:
    account = ExitAccount()
    account.add(gain=0.0, offered=1.0, pays=False)
    for _ in range(32):
        account.leave_out()
    assert account.is_due(share=0.1)
    assert not account.is_due(share=0.5)
    for _ in range(68):
        account.leave_out()
    assert account.is_due(share=0.5)


def test_evaluating_rows_that_offer_nothing_does_not_put_off_the_next_trial() -> None:
    """Rows for which a fixed threshold decides are evaluated in any case."""
    account = ExitAccount()
    for _ in range(32):
        account.leave_out()
        account.add(gain=0.0, offered=0.0, pays=False)
    assert account.is_due(share=0.1)
    account.add(gain=0.0, offered=1.0, pays=False)
    assert not account.is_due(share=0.1)
