"""JSON files that are written atomically."""

import json
from pathlib import Path
from typing import Any

from training.whole_file import whole_file


def write_json(path: Path, content: Any) -> None:
    """Write a file, replacing an older one only once the new one is complete."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the parsed content, or None if there is no such file.

    Raises:
        ValueError: if it is not JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
