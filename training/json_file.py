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
    """Return the parsed content, or None if there is no such file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
