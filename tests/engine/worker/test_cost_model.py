"""Cost curves are monotonic, exact at measured points, extended beyond them, and follow
observations.
"""

import random

import pytest

from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel

pytestmark = pytest.mark.torch


def test_interpolates_and_extends() -> None:
    curve = CostCurve([1, 2, 4], [1.0, 1.0, 2.0])
    assert [curve(n) for n in (0, 1, 2, 3, 4, 8)] == pytest.approx([0.0, 1.0, 1.0, 1.5, 2.0, 4.0])


def test_noise_never_makes_tokens_cheaper() -> None:
    curve = CostCurve([1, 2, 4], [1.0, 0.8, 1.2])
    assert curve(2) == pytest.approx(1.0)
    assert curve(3) == pytest.approx(1.1)


def test_single_point_is_flat() -> None:
    assert CostCurve([1], [0.5])(20) == pytest.approx(0.5)


def test_a_curve_follows_what_is_seen_also_where_nothing_is() -> None:
    curve = CostCurve([1, 8, 64], [1.0, 1.0, 4.0])
    for _ in range(200):
        curve.observe(1, 0.1)
    assert curve(1) == pytest.approx(0.1, rel=0.1)
    assert 0.1 <= curve(8) < 0.6
    assert curve(64) < 2.0


def test_a_pause_of_the_machine_is_no_price() -> None:
    rng = random.Random(0)
    curve = CostCurve([1, 2, 4], [1.0, 1.0, 1.0])
    for _ in range(500):
        curve.observe(1, rng.uniform(0.9, 1.1) if rng.random() < 0.9 else 100.0)
    assert curve(1) == pytest.approx(1.1, abs=0.15)


def test_what_is_beyond_the_points_teaches_nothing() -> None:
    curve = CostCurve([1, 2], [1.0, 2.0])
    assert curve.observe(500, 1.0) == 0.0
    assert curve(2) == pytest.approx(2.0)


def test_load_on_one_part_is_load_on_all() -> None:
    cheap, dear, last = CostCurve([1], [1.0]), CostCurve([1], [8.0]), CostCurve([1], [1.0])
    cost = CostModel([cheap, dear], [CostCurve([1], [0.1])], last, is_fixed=False)
    for _ in range(100):
        cost.observe(cost.segments[1], 1, 16.0)
        cost.settle()
    assert cost.segment(1, 1) == pytest.approx(16.0, rel=0.05)
    assert cost.head(0, 1) > 0.12
    assert cost.logits(1) > 1.2


def test_plain_steps_in_a_row_cost_what_they_were_measured_to_cost() -> None:
    """A head that takes longer than the start said makes no drafts pay against them."""
    flat = [CostCurve([1], [seconds]) for seconds in (1.0, 0.1, 1.0, 1.5)]
    cost = CostModel(flat[:1], flat[1:2], flat[2], steady=flat[3], is_fixed=False)
    for _ in range(100):
        cost.observe(cost.heads[0], 1, 0.3)
        cost.settle()
    assert cost.head(0, 1) > 0.2
    assert cost.steady(1) == 1.5


def test_what_was_observed_counts_from_the_next_step_on() -> None:
    curve, last = CostCurve([1], [1.0]), CostCurve([1], [1.0])
    cost = CostModel([curve], [], last, is_fixed=False)
    before = cost.plain(1)
    cost.observe(curve, 1, 2.0)
    assert cost.plain(1) == before
    cost.settle()
    assert cost.plain(1) > before
