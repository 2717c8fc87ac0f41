"""Files that are there whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a place beside it to write to; without an error, that then takes the file's place."""
    partial = path.with_suffix(".partial")
    yield partial
    partial.replace(path)
