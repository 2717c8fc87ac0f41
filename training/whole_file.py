"""Files that are written atomically."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.checkpoint.cache import put_in_place


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it replaces the file if the context ends without an error."""
    partial = path.with_suffix(".partial")
    try:
        yield partial
        put_in_place(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)  # a full disk has no room for a part of a file
        error.filename = error.filename or str(path)
        raise
