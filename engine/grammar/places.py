"""Places in a JSON schema: how errors name them, and what references lead to."""

import json
from typing import Any
from urllib.parse import unquote

from engine.errors import StructureError

Path = tuple[str | int, ...]


def refusal(path: Path, message: str) -> StructureError:
    """Return an error about a place in a schema."""
    place = json.dumps("/".join(["#", *map(str, path)]))[1:-1]
    return StructureError(f"{message} (at {place if len(place) < 200 else place[:200] + '…'})")


def resolve(root: Any, reference: str) -> Any:
    """Return what a reference within a schema leads to; None if it leads nowhere."""
    found = root
    for part in place_of(reference):
        found = _part_of(found, part)
    return found


def has_own_base(root: Any, path: Path) -> bool:
    """Whether references at a place are about a part of the schema with an `$id` of its own."""
    found = root
    for part in path:
        found = _part_of(found, part)
        if isinstance(found, dict) and isinstance(found.get("$id"), str):
            return True
    return False


def _part_of(found: Any, part: str | int) -> Any:
    if isinstance(found, list) and str(part).isdecimal() and int(part) < len(found):
        return found[int(part)]
    return found.get(part) if isinstance(found, dict) else None


def place_of(reference: str) -> Path:
    """Return the place that a reference within a schema names."""
    parts = unquote(reference).split("/")[1:]
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)
