"""Schemas exclude each other where no value satisfies both, whatever spells it."""

from typing import Any

import pytest

from engine.grammar.disjoint import are_disjoint


@pytest.mark.parametrize(
    ("one", "other", "is_disjoint"),
    [
        (1, 1.0, False),
        ([1], [1.0], False),
        ({"a": [{"b": 2.0}], "c": None}, {"c": None, "a": [{"b": 2}]}, False),
        (1 << 60, float(1 << 60), False),
        (1, True, True),
        ([1], [True], True),
        ([1], [1.5], True),
        ("1", 1, True),
    ],
)
def test_equal_values_are_one_value(one: Any, other: Any, is_disjoint: bool) -> None:
    found = are_disjoint({"const": one}, {"enum": [other, "else"]}, lambda schema: schema)

    assert found == is_disjoint
