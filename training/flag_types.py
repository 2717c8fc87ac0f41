"""Types of command-line flags: parsers that refuse a value which makes no sense.

`argparse` puts the flag's name before their messages. `benchmarks` uses them, too.
"""

import argparse
import math
from pathlib import Path


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _whole(text, 1)


def count(text: str) -> int:
    """Parse a whole number of at least 0."""
    return _whole(text, 0)


def positive_number(text: str) -> float:
    """Parse a finite number above 0."""
    number = _finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError("should be more than 0")
    return number


def temperature(text: str) -> float:
    """Parse a finite number of at least 0."""
    number = _finite(text)
    if number < 0:
        raise argparse.ArgumentTypeError("should be at least 0")
    return number


def share(text: str) -> float:
    """Parse a number from 0 to 1."""
    number = _finite(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("should be between 0 and 1")
    return number


def layer_numbers(text: str) -> list[int]:
    """Parse comma-separated layers, 0 for the embeddings; returns each once, ascending."""
    return sorted({count(part) for part in text.split(",")})


def output_file(text: str) -> Path:
    """Parse the name of a file to write, so that nothing runs whose result cannot be written."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a directory")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is not a directory")
    return path


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError("should be a whole number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"should be at least {least}")
    return number


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError("should be a number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError("should be a finite number")
    return number
