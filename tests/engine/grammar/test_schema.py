"""Outputs that xgrammar allows follow the schema; what it cannot enforce is refused by name."""

import itertools
import json
import random
import re
from typing import Any

import pytest

pytest.importorskip("jsonschema_rs")

import xgrammar
from grammar_samples import BYTES, EOS, sample
from jsonschema_rs import Draft202012Validator

from engine.errors import StructureError
from engine.grammar.compiler import GrammarCompiler
from engine.grammar.schema import lowered
from engine.request import Structure

pytestmark = pytest.mark.torch

NUM_SAMPLES = 20


def string(**keywords: Any) -> dict[str, Any]:
    return {"type": "string", **keywords}


def integer(**keywords: Any) -> dict[str, Any]:
    return {"type": "integer", **keywords}


def number(**keywords: Any) -> dict[str, Any]:
    return {"type": "number", **keywords}


def array(**keywords: Any) -> dict[str, Any]:
    return {"type": "array", **keywords}


def thing(**keywords: Any) -> dict[str, Any]:
    return {"type": "object", **keywords}


A_B = {"a": integer(), "b": integer()}
CAT = thing(properties={"kind": {"const": "cat"}, "lives": integer(maximum=9)}, required=["kind"])
DOG = thing(properties={"kind": {"enum": ["dog", "pup"]}, "good": {"type": "boolean"}})
DOG["required"] = ["kind", "good"]
OTHER_BASE = {"$id": "http://example.com/b", "$defs": {"c": integer()}}

FOLLOWED: list[Any] = [
    {},
    True,
    string(minLength=3),
    string(maxLength=2),
    string(minLength=2, maxLength=4),
    string(maxLength=0),
    string(pattern="^[a-c]+$"),
    string(pattern="^ab"),
    string(pattern="x"),
    string(pattern="ab|cd"),
    string(pattern="^a|b$"),
    string(pattern=r"^(?:\d{3}-)+[^a\n]\S$"),
    string(pattern=r"^\.\$\^$"),
    string(pattern='^["x]$'),
    *(
        string(format=name)
        for name in ("date", "time", "date-time", "duration", "ipv4", "ipv6", "uuid")
    ),
    *(string(format=name) for name in ("email", "hostname", "uri")),
    string(format="uri", minLength=1, maxLength=2083),
    integer(minimum=3.5, maximum=12),
    integer(minimum=3, exclusiveMinimum=4.5, exclusiveMaximum=7),
    integer(multipleOf=7, minimum=-50, maximum=50),
    number(minimum=-1.5, maximum=0.25),
    number(exclusiveMinimum=0, exclusiveMaximum=1e-3),
    array(),
    array(items=integer(), minItems=2, maxItems=3),
    array(minItems=2, maxItems=3),
    array(prefixItems=[integer(), string(maxLength=3)], minItems=1),
    array(prefixItems=[integer(), string(maxLength=3)], minItems=3, maxItems=4),
    array(prefixItems=[integer(), string()], maxItems=1),
    array(prefixItems=[integer()], items=False),
    array(items=integer(), uniqueItems=False),
    thing(),
    thing(required=["a"]),
    thing(properties=A_B),
    thing(properties=A_B, required=["b", "c"]),
    thing(properties=A_B, required=["a", "b"], additionalProperties=False),
    thing(properties=A_B, minProperties=1, maxProperties=1),
    thing(properties=A_B, required=["a", "c"], additionalProperties=integer(maximum=5)),
    thing(additionalProperties=integer(), maxProperties=2, minProperties=1),
    thing(patternProperties={"^x[0-9]$": integer()}),
    thing(propertyNames=string(maxLength=2), additionalProperties=integer()),
    thing(propertyNames={"enum": ["p", "q"]}, additionalProperties=integer()),
    thing(properties=A_B, unevaluatedProperties=False),
    thing(properties={"größe": integer(), 'a"b': integer()}, required=["größe"]),
    string(pattern=""),
    string(pattern="^"),
    string(pattern="^$"),
    {"anyOf": [integer(minimum=5), string(maxLength=1)], "description": "either"},
    {"oneOf": [integer(), string(maxLength=3), {"type": "null"}]},
    {"oneOf": [{"$ref": "#/$defs/cat"}, DOG], "$defs": {"cat": CAT}},
    {"allOf": [integer(minimum=5)]},
    {"enum": [1, "a", None, True, 0.1, [1], {"a": 1e-7}]},
    {"enum": ["a", 1, 2.0, "é\n"], "type": ["integer", "null"]},
    {"const": {"b": 1, "a": [None]}, "type": "object"},
    {"type": ["string", "integer"], "minLength": 2, "maximum": 3},
    {"minLength": 2},
    {"maximum": 2},
    thing(properties={"a": {"$ref": "#/properties/b"}, "b": integer(minimum=4)}, required=["a"]),
    thing(properties={"a": {"$ref": "#/$defs/x~1y%20z"}}, required=["a"])
    | {"$defs": {"x/y z": integer(minimum=4)}},
    thing(properties={"n": integer(), "next": {"$ref": "#"}}, required=["n"]),
    thing(properties={"a": {"$ref": "#/$defs/b"}, "$id": {"$ref": "#/properties/a"}})
    | {"$id": "http://example.com/a", "$defs": {"b": integer() | {"$id": "b"}}, "required": ["a"]},
    thing(properties={"a": string(format="int32-not-a-string") | {"type": "integer"}}),
]

REFUSED: dict[str, Any] = {
    "#/not": {"not": {}},
    "#/properties/a/if": thing(properties={"a": {"if": {}}}),
    "#/maxLength": string(pattern="a", maxLength=2),
    "#/minLength": string(format="date", minLength=11),
    "#/maxLength  ": string(format="uri", maxLength=100),
    "#/format ": string(format=["date"]),
    "#/format": string(pattern="^a$", format="date"),
    "#/items/format": array(items=string(format="phone")),
    "#/pattern": string(pattern=r"^\n$"),
    "#/uniqueItems": array(uniqueItems=True),
    "#/contains": array(contains=integer()),
    "#/multipleOf": number(multipleOf=0.5),
    "#/minProperties": thing(minProperties=2),
    "#/dependentRequired": thing(dependentRequired={"a": ["b"]}),
    "#/required": thing(required=["a"], additionalProperties=False),
    "#/patternProperties": thing(properties=A_B, patternProperties={"^a$": string()}),
    "#/propertyNames": thing(properties=A_B, propertyNames=string(maxLength=1)),
    "#/minimum": {"anyOf": [integer()], "minimum": 3},
    "#/maxLength ": {"enum": ["aaa"], "maxLength": 2},
    "#/enum": {"enum": ["a"], "type": "integer"},
    "#/const": {"const": 1 << 80},
    "#/enum ": {"enum": [float("inf")], "type": "integer"},
    "#/items/maximum": array(items=integer(minimum=0, maximum=2**64 - 1)),
    "#/minimum ": integer(minimum=-1e300),
    "#/maximum": {"$ref": "#/$defs/a", "maximum": 3, "$defs": {"a": integer()}},
    "#/allOf": {"allOf": [integer(), integer(minimum=3)]},
    "#/oneOf": {"oneOf": [integer(), number()]},
    "#/$ref": {"$ref": "http://example.com/schema"},
    "#/$ref ": {"$ref": "#/$defs/nowhere"},
    "#/$ref  ": {"$ref": "#name", "$defs": {"a": {"$anchor": "name"}}},
    "#/$defs/b/items/$ref": thing(properties={"a": {"$ref": "#/$defs/b"}})
    | {"$defs": {"b": array(items={"$ref": "#/$defs/c"}) | OTHER_BASE, "c": string()}},
    "#/properties/a/$ref": thing(properties={"a": {"$ref": "#/$defs/a"}})
    | {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "#/properties/gr\\u00f6\\u00dfe": thing(
        properties={"größe": integer()}, additionalProperties=True
    ),
    '#/properties/a\\"b': thing(properties={'a"b': integer()}, additionalProperties=True),
    "#/propertyNames ": thing(propertyNames=string(maxLength=2), maxProperties=0),
    "#/propertyNames/minLength": thing(propertyNames={"enum": ["a", "bb"], "minLength": 2}),
    "#/propertyNames/type": thing(propertyNames={"type": "integer"}),
    "#/multipleOf ": integer(multipleOf=5, minimum=1),
    "#/pattern ": string(pattern=r"^[\b]$"),
    "#/pattern  ": string(pattern=r"^[\ud83d\ude00]$"),
    "#/type": {"type": "text"},
    "#": {"minLength": 2, "minimum": 3},
    "#/properties/a": thing(properties={"a": False}),
    "#/items": {"type": "array", "items": [integer()]},
}


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler([*BYTES, b""], [EOS])


@pytest.mark.parametrize("schema", FOLLOWED, ids=lambda schema: json.dumps(schema)[:60])
def test_every_output_follows_the_schema(compiler: GrammarCompiler, schema: Any) -> None:
    grammar = compiler.compile(Structure(kind="json_schema", source=json.dumps(schema)))
    validator = Draft202012Validator(schema, validate_formats=True)
    source = random.Random(json.dumps(schema))
    outputs = [sample(grammar, source) for _ in range(NUM_SAMPLES)]
    ended = [bytes(output) for output in outputs if output is not None]
    assert ended
    for output in ended:
        text = output.decode(errors="replace")  # as the detokenizer does
        if "\\ud" not in text.lower():  # a lone surrogate is valid JSON, but not here
            assert validator.is_valid(json.loads(text)), text


@pytest.mark.parametrize("place", REFUSED)
def test_what_would_not_be_enforced_is_refused_by_its_place(place: str) -> None:
    with pytest.raises(StructureError) as caught:
        lowered(REFUSED[place])
    assert str(caught.value).endswith(f"(at {place.strip()})")


def test_deep_schemas_are_refused(compiler: GrammarCompiler) -> None:
    deep: Any = integer()
    for _ in range(100):
        deep = array(items=deep)
    with pytest.raises(StructureError, match="nested"):
        lowered(deep)
    with pytest.raises(StructureError):
        compiler.compile(
            Structure(kind="json_schema", source='{"items":' * 9999 + "1" + "}" * 9999)
        )


def test_any_object_may_have_properties(compiler: GrammarCompiler) -> None:
    matcher = xgrammar.GrammarMatcher(compiler.compile(Structure(kind="json_object")))
    assert matcher.accept_string('{"a": [1, {"b": null}]}')
    assert matcher.is_completed()


@pytest.mark.parametrize("pattern", ["(?=a)b", "(?<!a)b", "(?i)a", "a^b", "a$b", "(a$)"])
def test_regular_expressions_that_xgrammar_would_bend_are_refused(
    compiler: GrammarCompiler, pattern: str
) -> None:
    with pytest.raises(StructureError):
        compiler.compile(Structure(kind="regex", source=pattern))


# ---- patterns mean what they mean elsewhere ----

WORDS = ["".join(word) for count in range(5) for word in itertools.product("ab.", repeat=count)]


def random_pattern(source: random.Random, depth: int = 4) -> str:
    """Return a random pattern over a, b and the dot."""
    if depth == 0 or source.random() < 0.3:
        return source.choice(("a", "b", "[ab]", "[^a]", ".", r"\."))
    one, other = (random_pattern(source, depth - 1) for _ in range(2))
    quantifier = source.choice(("?", "+", "*", "{2}", "{1,3}", "{0,2}", "{2,}", "+?", "*?"))
    return source.choice((one + other, f"(?:{one}|{other})", f"(?:{one}){quantifier}"))


def follows(grammar: Any, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(grammar)
    return bool(matcher.accept_string(text)) and bool(matcher.is_completed())


@pytest.mark.parametrize("pattern", ["^[^é]*$", "^[^…ä-ü]+$", "^[^é\\\\]+$", "^[^😀]$"])
def test_negated_classes_hold_nothing_that_json_escapes(
    compiler: GrammarCompiler, pattern: str
) -> None:
    schema = json.dumps(string(pattern=pattern))
    grammar = compiler.compile(Structure(kind="json_schema", source=schema))
    for character in ('"', "\\", "\n", "\x01"):
        assert not follows(grammar, f'"{character}"'), character
    for word in ("a", "e", "ö", "é", "…", "😀"):
        assert follows(grammar, f'"{word}"') == bool(re.search(pattern, word)), word


@pytest.mark.parametrize("number_", range(40))
def test_patterns_match_what_they_do_elsewhere(compiler: GrammarCompiler, number_: int) -> None:
    source = random.Random(number_)
    pattern = source.choice(("^{}$", "^{}", "{}$", "{}")).format(random_pattern(source))
    schema = json.dumps(string(pattern=pattern))
    grammar = compiler.compile(Structure(kind="json_schema", source=schema))
    for word in source.sample(WORDS, 40):
        assert follows(grammar, f'"{word}"') == bool(re.search(pattern, word)), (pattern, word)
