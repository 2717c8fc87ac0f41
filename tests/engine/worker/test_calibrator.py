"""Calibrators start with their seed and soon learn what the traffic is like."""

import random

import pytest

from engine.model.exit_head import Calibration
from engine.worker.calibrator import Calibrator
from engine.worker.chances import Chances
from engine.worker.prompt_lookup import Continuation

pytestmark = pytest.mark.torch

HEADS = {3: Calibration(edges=(0.5, 1.0), greedy=(0.2, 0.9), sampled=(0.1, 0.8))}


def test_before_any_outcome_the_seed_speaks() -> None:
    assert Calibrator((0.0, 1.0), (1.0, 1.0)).probability((1.0, 0.0)) == 0.5
    assert Calibrator((0.0, 9.0), (1.0, 1.0)).probability((1.0, 9.0)) < 1.0


@pytest.mark.parametrize("rate", [0.03, 0.5, 0.97])
def test_a_constant_rate_is_learned_within_a_few_hundred_outcomes(rate: float) -> None:
    rng = random.Random(1)
    calibrator = Calibrator((0.0, 1.0), (0.5, 0.5))
    for _ in range(300):
        calibrator.observe((1.0, 1.0), rng.random() < rate)
    assert calibrator.probability((1.0, 1.0)) == pytest.approx(rate, abs=0.07)


def test_a_change_of_traffic_is_followed() -> None:
    calibrator = Calibrator((0.0,), (0.5,))
    for accepted in (True, False):
        for _ in range(300):
            calibrator.observe((1.0,), accepted)
        assert (calibrator.probability((1.0,)) > 0.9) is accepted


def test_it_learns_which_feature_matters() -> None:
    rng = random.Random(2)
    calibrator = Calibrator((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    for _ in range(600):
        features = (1.0, rng.uniform(-1, 1), rng.uniform(-1, 1))
        calibrator.observe(features, features[1] > 0)
    sure, unsure = (calibrator.probability((1.0, x, 0.3)) for x in (0.9, -0.9))
    assert sure > 0.9
    assert unsure < 0.1


def test_heads_begin_with_their_own_calibration() -> None:
    chances = Chances([3], HEADS)
    middle = chances.of_head(0, 0.75, 0, is_greedy=True)
    assert middle.probability == pytest.approx(0.9, abs=1e-6)
    assert chances.of_head(0, 0.25, 0, is_greedy=False).probability == pytest.approx(0.1, abs=1e-6)
    between = chances.of_head(0, 0.5, 0, is_greedy=True).probability
    assert 0.2 < between < 0.9


def test_longer_and_unanimous_matches_are_likelier() -> None:
    chances = Chances([], {})

    def chance(match: int, agreement: float, offset: int = 0) -> float:
        found = Continuation([1, 2, 3], match, agreement)
        return chances.looked_up(found, offset, 0.3, None).probability

    assert chance(1, 0.5) < chance(1, 1.0) < chance(4, 1.0) < chance(16, 1.0)
    assert chance(1, 1.0, offset=2) == chance(3, 1.0)


def test_a_head_that_agrees_raises_a_look_ups_chance_and_learns_apart_from_it() -> None:
    chances = Chances([3], HEADS)
    before = chances.looked_up(Continuation([1], 2, 1.0), 0, 0.3, None)
    agreed = chances.screened(before, -0.1, is_best=True, is_outside=False)
    denied = chances.screened(before, -9.0, is_best=False, is_outside=False)
    assert denied.probability < before.probability < agreed.probability
    for _ in range(300):
        chances.learn(agreed, accepted=False)
    again = chances.screened(before, -0.1, is_best=True, is_outside=False)
    assert again.probability < 0.2
    assert chances.looked_up(Continuation([1], 2, 1.0), 0, 0.3, None) == before
