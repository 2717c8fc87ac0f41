"""Checks single keywords of a JSON schema; refusals name the keyword's place."""

import math
from collections.abc import Sequence
from typing import Any

from engine.errors import StructureError
from engine.grammar.disjoint import has_type
from engine.grammar.places import Path, refusal
from engine.grammar.strings import FORMATS, XGRAMMAR_FORMATS, whole_pattern

Schema = dict[str, Any]
_INT64 = 1 << 63


def listing(values: Any, types: Any, path: Path) -> Schema:
    """Return an enum of the values that have one of the types.

    Args:
        values: An enum's values, or a const's one.
        types: The schema's `type`, if any.
        path: The keyword's place.

    Raises:
        StructureError: No value has such a type, or one cannot be written.
    """
    if not isinstance(values, list) or not values:
        raise refusal(path, "enum should be a list of values")
    wanted = [types] if isinstance(types, str) else types
    if wanted is not None:
        values = [value for value in values if any(has_type(value, name) for name in wanted)]
    if not values:
        raise refusal(path, "none of the values has the type asked for")
    for value in values:
        _check_writable(value, path)
    return {"enum": values}


def _check_writable(value: Any, path: Path) -> None:
    """Refuse numbers that xgrammar would write as other numbers."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        in_64_bits(value, path)
    if isinstance(value, float) and not math.isfinite(value):
        raise refusal(path, "the number is out of range")
    for part in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        _check_writable(part, path)


def in_64_bits(value: int, path: Path) -> int:
    """Return a whole number, if xgrammar can hold it.

    Raises:
        StructureError: It cannot.
    """
    if not -_INT64 <= value < _INT64:
        raise refusal(path, "whole numbers are supported up to 64 bits")
    return value


def formatted(schema: Schema, given: Sequence[str], path: Path) -> Schema:
    """Lower a string's format; other keywords are refused unless every such string satisfies them.

    Args:
        schema: The string's schema.
        given: The keywords for strings that it has, `format` first.
        path: The schema's place.

    Raises:
        StructureError: The format, or a keyword beside it, is not supported.
    """
    name = schema["format"]
    if not isinstance(name, str) or name not in (*FORMATS, *XGRAMMAR_FORMATS):
        known = ", ".join(sorted((*FORMATS, *XGRAMMAR_FORMATS)))
        message = f"this format is not supported; those are {known}"
        raise refusal((*path, "format"), message)
    spelling = FORMATS.get(name)
    for word in given[1:]:
        is_met = spelling is not None and (
            schema[word] <= spelling.shortest
            if word == "minLength"
            else schema[word] >= spelling.longest
        )
        if not is_met:
            raise refusal((*path, word), f"{word} beside format is not supported")
    if spelling is None:
        return {"format": name}
    return {"pattern": whole_pattern(f"^{spelling.pattern}$")}


def pattern_of(pattern: Any, path: Path) -> str:
    """Return a pattern rewritten so that it matches whole strings.

    Raises:
        StructureError: It is not a pattern, or not supported.
    """
    if not isinstance(pattern, str):
        raise refusal(path, "a pattern should be a string")
    try:
        return whole_pattern(pattern)
    except StructureError as error:
        raise refusal(path, str(error)) from None


def mapping(schema: Schema, path: Path, word: str) -> Schema:
    """Return a keyword's object; empty if the keyword is missing.

    Raises:
        StructureError: The value is not an object.
    """
    value = schema.get(word, {})
    if not isinstance(value, dict):
        raise refusal((*path, word), f"{word} should be an object")
    return value


def number(value: Any, path: Path) -> float:
    """Return a keyword's number.

    Raises:
        StructureError: The value is not a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise refusal(path, f"{path[-1]} should be a number")
    return value


def bounds(schema: Schema, path: Path, least: str, most: str) -> tuple[int, int | None]:
    """Return a lower and an upper count, such as minItems and maxItems; None: no upper one."""
    found: list[int | None] = []
    for word in (least, most):
        value = schema.get(word)
        if value is not None:
            count = number(value, (*path, word))
            if count != int(count) or count < 0:
                raise refusal((*path, word), f"{word} should be a whole number, 0 or more")
            value = int(count)
        found.append(value)
    fewest, greatest = found[0] or 0, found[1]
    if greatest is not None and fewest > greatest:
        raise refusal((*path, least), f"{least} is larger than {most}")
    return fewest, greatest
