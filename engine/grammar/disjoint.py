"""Proves, in simple cases, that two JSON schemas exclude each other."""

import json
from collections.abc import Callable
from typing import Any

_MAX_DEPTH = 4


def are_disjoint(
    one: Any, other: Any, resolved: Callable[[Any], Any], depth: int = _MAX_DEPTH
) -> bool:
    """Whether no value satisfies both schemas; False where that cannot be proved.

    Args:
        one: A schema, not a reference to one.
        other: Another schema, not a reference to one.
        resolved: Follows the references of a schema.
        depth: How many levels of properties to compare.
    """
    if not isinstance(one, dict) or not isinstance(other, dict) or not depth:
        return False
    values, others = _values(one), _values(other)
    if values is not None and others is not None:
        return not {_canonical(value) for value in values} & {_canonical(value) for value in others}
    if values is None and others is not None:
        return are_disjoint(other, one, resolved, depth)
    types, other_types = _types(one), _types(other)
    if values is not None:
        return other_types is not None and not any(
            has_type(value, name) for value in values for name in other_types
        )
    if types is not None and other_types is not None and not types & other_types:
        return True
    if types != {"object"} or other_types != {"object"}:
        return False
    return any(
        are_disjoint(
            resolved(one["properties"][name]),
            resolved(other["properties"][name]),
            resolved,
            depth - 1,
        )
        for name in _required(one) & _required(other)
    )


def has_type(value: Any, name: object) -> bool:
    """Whether a JSON value is of a type, in JSON Schema's sense: 1.0 is an integer."""
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, (int, float)):
        is_whole = isinstance(value, int) or value.is_integer()
        return name == "number" or (name == "integer" and is_whole)
    kinds = {str: "string", list: "array", dict: "object", type(None): "null"}
    return kinds.get(type(value)) == name


def _values(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _types(schema: dict[str, Any]) -> set[str] | None:
    """Return the types that a schema names; a number may be an integer."""
    types = schema.get("type")
    if types is None:
        return None
    names = {types} if isinstance(types, str) else {name for name in types if isinstance(name, str)}
    return names | {"integer"} if "number" in names else names


def _required(schema: dict[str, Any]) -> set[str]:
    """Return the properties that are required and have a schema."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return set()
    return {name for name in required if isinstance(name, str) and name in properties}


def _canonical(value: Any) -> str:
    """Return a text that is the same for equal values: for 1 and 1.0, but not for 1 and true."""
    return json.dumps(_with_whole_numbers(value), sort_keys=True)


def _with_whole_numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_whole_numbers(each) for each in value]
    if isinstance(value, dict):
        return {name: _with_whole_numbers(each) for name, each in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value
