import random

import pytest

from benchmarks.calibration import Verdicts, error_by_luck, expected_calibration_error
from engine.worker.chances import Chance

pytestmark = pytest.mark.torch


def test_chances_that_come_true_have_no_error() -> None:
    outcomes = [(0.25, i % 4 == 0) for i in range(100)] + [(0.75, i % 4 != 0) for i in range(100)]
    assert expected_calibration_error(outcomes) == pytest.approx(0.0)


def test_the_error_is_the_mean_gap_between_said_and_came() -> None:
    outcomes = [(0.9, False)] * 10 + [(0.1, False)] * 30
    assert expected_calibration_error(outcomes) == pytest.approx((10 * 0.9 + 30 * 0.1) / 40)
    assert expected_calibration_error([]) == 0.0
    assert expected_calibration_error([(1.0, True)]) == 0.0


def test_few_true_chances_have_the_error_that_luck_gives_them() -> None:
    luck = random.Random(0)
    said = [luck.random() for _ in range(300)]
    errors = [
        expected_calibration_error([(chance, luck.random() < chance) for chance in said])
        for _ in range(200)
    ]
    by_luck = error_by_luck([(chance, True) for chance in said])
    assert by_luck == pytest.approx(sum(errors) / len(errors), rel=0.1)
    assert by_luck > 0.04
    assert error_by_luck([]) == 0.0


def test_every_kind_of_guess_is_judged_apart() -> None:
    verdicts = Verdicts()
    verdicts.add(Chance(0.5, 0, True, (1.0,)), True)
    verdicts.add(Chance(0.5, "look-up", True, (1.0,)), False)
    verdicts.add(Chance(0.5, 0, False, (1.0,)), False)
    assert set(verdicts.outcomes) == {("exit 0", True), ("look-up", True), ("exit 0", False)}
