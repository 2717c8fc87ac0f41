"""Learning gets its share of the time, of which a reserve is kept for idle times."""

from engine.worker.learning.budget import Budget


def test_learning_gets_its_share_and_no_more():
    budget, clock, learned = Budget(0.2), 0.0, 0.0
    while clock < 100.0:
        clock += 0.01
        budget.earn(0.01)
        if budget.allows(is_idle=False):
            budget.spend(0.03)
            clock += 0.03
            learned += 0.03
    assert 0.18 < learned / clock <= 0.2


def test_something_is_kept_for_when_nobody_waits():
    budget = Budget(0.5)
    budget.earn(0.05)
    assert budget.allows(is_idle=True)
    assert not budget.allows(is_idle=False)
    budget.spend(0.06)
    assert not budget.allows(is_idle=True)


def test_what_is_not_used_does_not_gather_for_ever():
    budget = Budget(0.5)
    budget.earn(1000.0)
    budget.spend(2.0)
    assert not budget.allows(is_idle=True)
