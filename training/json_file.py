"""JSON files that are there whole or not at all."""

import json
from pathlib import Path
from typing import Any

from training.whole_file import whole_file


def write_json(path: Path, content: Any) -> None:
    """Write, or replace what is there."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """What was written; None: nothing yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
