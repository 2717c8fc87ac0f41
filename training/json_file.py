"""JSON files that are there whole or not at all."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write, or replace what is there."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> Any:
    """What was written; None: nothing yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
