"""Tasks with a prompt and the JSON schema that the answer has to follow.

The length of strings and lists is limited, so that answers end within their tokens at any
temperature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, and the schema of its answer."""

    name: str
    prompt: str
    schema: Schema


def _text(longest: int = 24) -> Schema:
    return {"type": "string", "minLength": 1, "maxLength": longest}


def _whole(least: int, most: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _list(items: Schema, fewest: int, most: int) -> Schema:
    return {"type": "array", "items": items, "minItems": fewest, "maxItems": most}


def _record(optional: Sequence[str] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


_POINT = _record(x=_whole(-99, 99), y=_whole(-99, 99))
_CIRCLE = _record(kind={"const": "circle"}, centre=_POINT, radius=_whole(1, 50))
_SQUARE = _record(kind={"const": "square"}, corner=_POINT, side=_whole(1, 50))
_BOOK = _record(title=_text(), year=_whole(1800, 2025), genres=_list(_text(12), 1, 3))
_FORMATS = {name: {"type": "string", "format": name} for name in ("date", "time", "uuid", "ipv4")}

TASKS: Sequence[Task] = (
    Task(
        "person",
        "Describe a person: name, age and three hobbies.",
        _record(name=_text(), age=_whole(0, 120), hobbies=_list(_text(16), 3, 3)),
    ),
    Task("sentiment", "Rate: “The food was cold.”", _record(mood=_one_of("good", "bad", "mixed"))),
    Task("colour", "What colour is grass?", _one_of("red", "green", "blue")),
    Task("yes_no", "Is the earth flat?", _record(answer={"type": "boolean"}, why=_text(40))),
    Task("numbers", "Give five numbers below 100.", _list(_whole(0, 100), 5, 5)),
    Task("book", "Name a famous novel.", _BOOK),
    Task("books", "Name two novels.", _list(_BOOK, 2, 2)),
    Task(
        "shape",
        "Draw a circle or a square.",
        {"oneOf": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/square"}]}
        | {"$defs": {"circle": _CIRCLE, "square": _SQUARE}},
    ),
    Task(
        "tree",
        "Describe a family tree.",
        _record(name=_text(12), children=_list(_record(name=_text(12), age=_whole(0, 99)), 0, 3)),
    ),
    Task(
        "price", "What does a coffee cost?", _record(amount=_whole(1, 20), unit=_one_of("€", "$"))
    ),
    Task(
        "temperature",
        "How warm is it in Rome in May?",
        _record(
            celsius={"type": "number", "minimum": -20, "maximum": 45}, sure={"type": "boolean"}
        ),
    ),
    Task("date", "When did the war end?", _record(day=_FORMATS["date"], event=_text(30))),
    Task("meeting", "When shall we meet?", _record(date=_FORMATS["date"], time=_FORMATS["time"])),
    Task("host", "Describe a server.", _record(id=_FORMATS["uuid"], address=_FORMATS["ipv4"])),
    Task(
        "plate",
        "Invent a licence plate.",
        _record(plate={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,4}(?:[A-Z])?$"}),
    ),
    Task(
        "maybe",
        "Who wrote this song, if anybody knows?",
        _record(writer={"type": ["string", "null"], "maxLength": 20}, year=_whole(1900, 2025)),
    ),
    Task(
        "recipe",
        "How are pancakes made?",
        _record(
            ("note",),
            name=_text(),
            steps=_list(_text(40), 2, 4),
            minutes={"type": "integer", "multipleOf": 5, "minimum": 5, "maximum": 90},
            note=_text(20),
        ),
    ),
    Task(
        "scores",
        "Give the scores of some players.",
        {"type": "object", "propertyNames": {"enum": ["ann", "bob", "eve"]}}
        | {"additionalProperties": _whole(0, 10)},
    ),
    Task(
        "pair",
        "Name a city and how many people live there, in thousands.",
        {
            "type": "array",
            "prefixItems": [_text(), _whole(1, 40000)],
            "minItems": 2,
            "items": False,
        },
    ),
    Task(
        "choice",
        "A number or a word?",
        {"anyOf": [_whole(0, 1000), _text(12), {"type": "null"}]},
    ),
)
