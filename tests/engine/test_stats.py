"""Corrupt rows, and what learning heads have done, are counted over all workers."""

from engine.plan import Learning, RowResult, StepPlan, StepResult
from engine.stats import EngineStats


def test_learning_is_counted_over_workers_and_the_latest_trial_is_shown() -> None:
    stats = EngineStats()
    plan = StepPlan(step_id=0)
    for news in (
        Learning(num_updates=3, num_adopted=1, seconds=0.5, serving_agreement=0.4),
        Learning(num_updates=2, num_dropped=1, seconds=0.25, serving_agreement=0.3),
        None,  # a step of a worker whose heads do not learn
    ):
        stats.count_step(plan, StepResult(step_id=0, rows=[], learning=news), [])

    assert stats.learning == Learning(
        num_updates=5, num_adopted=1, num_dropped=1, seconds=0.75, serving_agreement=0.3
    )


def test_rows_that_are_no_numbers_are_counted_and_no_other_faults() -> None:
    stats = EngineStats()
    rows = [
        RowResult(sequence_id=0, token_ids=[], error="ill", is_corrupt=True),
        RowResult(sequence_id=1, token_ids=[], error="does not fit"),
        RowResult(sequence_id=2, token_ids=[7]),
    ]
    for _ in range(2):
        stats.count_step(StepPlan(step_id=0), StepResult(step_id=0, rows=rows), rows)

    assert stats.corrupted_total == 2
