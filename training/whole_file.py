"""Files that are written atomically."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it replaces the file if the context ends without an error."""
    partial = path.with_suffix(".partial")
    yield partial
    partial.replace(path)
