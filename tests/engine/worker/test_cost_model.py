"""Cost curves are monotonic, exact at measured points and extended beyond them."""

import pytest

from engine.worker.cost_model import CostCurve

pytestmark = pytest.mark.torch


def test_interpolates_and_extends() -> None:
    curve = CostCurve([1, 2, 4], [1.0, 1.0, 2.0])
    assert [curve(n) for n in (0, 1, 2, 3, 4, 8)] == [0.0, 1.0, 1.0, 1.5, 2.0, 4.0]


def test_noise_never_makes_tokens_cheaper() -> None:
    curve = CostCurve([1, 2, 4], [1.0, 0.8, 1.2])
    assert curve(2) == 1.0
    assert curve(3) == pytest.approx(1.1)


def test_single_point_is_flat() -> None:
    assert CostCurve([1], [0.5])(20) == 0.5
