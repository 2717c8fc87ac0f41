"""The factor by which whole steps take longer than their parts."""

import random

import pytest

from engine.worker.measured_bias import MeasuredBias


def test_follows_what_steps_take() -> None:
    bias, chances = MeasuredBias(), random.Random(0)
    assert bias.factor == 1.0
    for _ in range(100):
        bias.observe(2.0, 2.6 * chances.uniform(0.9, 1.1))
    assert bias.factor == pytest.approx(1.3, rel=0.03)


def test_a_pause_is_no_price() -> None:
    bias = MeasuredBias()
    for number in range(100):
        bias.observe(1.0, 100.0 if number == 50 else 1.0)
    assert bias.factor == pytest.approx(1.0, rel=0.03)


def test_nothing_modelled_is_no_error() -> None:
    bias = MeasuredBias()
    bias.observe(0.0, 0.0)
    assert bias.factor == 1.0
