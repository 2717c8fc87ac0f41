"""Flags' values that make sense are taken, others are refused."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from training.flag_types import (
    count,
    layer_numbers,
    output_file,
    positive,
    positive_number,
    share,
    temperature,
)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (positive, "1", 1),
        (count, "0", 0),
        (positive_number, "0.5", 0.5),
        (temperature, "0", 0.0),
        (share, "1", 1.0),
        (layer_numbers, "4,0,4", [0, 4]),
    ],
)
def test_what_makes_sense(parse: Callable[[str], object], text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (positive, ("0", "-1", "1.5", "x", "")),
        (count, ("-1", "x")),
        (positive_number, ("0", "nan", "inf", "x")),
        (temperature, ("-1", "nan", "inf")),
        (share, ("-0.1", "1.1", "nan")),
        (layer_numbers, ("", "1,", "abc", "-1")),
    ],
)
def test_what_makes_none(parse: Callable[[str], object], texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match="should be"):
            parse(text)


def test_a_file_to_write_has_a_directory(tmp_path: Path) -> None:
    assert output_file(str(tmp_path / "x.json")) == tmp_path / "x.json"
    assert output_file("x.json") == Path("x.json")
    for path in (tmp_path, tmp_path / "nowhere" / "x.json"):
        with pytest.raises(argparse.ArgumentTypeError, match="director"):
            output_file(str(path))
