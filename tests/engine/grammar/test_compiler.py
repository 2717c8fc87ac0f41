"""Grammars are read in the form that they are written in, alone and as parts of others."""

import json

import pytest
import xgrammar
from grammar_samples import BYTES, EOS

from engine.errors import StructureError
from engine.grammar.compiler import GrammarCompiler
from engine.request import Structure

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler([*BYTES, b""], [EOS])


def alone(source: str) -> Structure:
    return Structure(kind="grammar", source=source)


def behind_a_thought(source: str) -> Structure:
    thought = {"type": "const_string", "value": "hm"}
    elements = [thought, {"type": "grammar", "grammar": source}]
    tag = {"type": "sequence", "elements": elements}
    return Structure(kind="structural_tag", source=json.dumps(tag))


@pytest.mark.parametrize("structure", [alone, behind_a_thought])
@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('root ::= "a" b\nb ::= [^"] "::="', "ab::="),
        ('# start: "b"\nroot\n  ::= "a" # Lark has start: "b"', "a"),
        ('start: "a" /[b-d]/', "ad"),
        ('start: "a" "::=" ESCAPED_STRING\n%import common.ESCAPED_STRING', 'a::="b"'),
        ('// in EBNF root ::= "b"\n?start: "a" // or\n     | "root ::= b"', "root ::= b"),
    ],
)
def test_a_grammar_is_ebnf_or_lark(compiler: GrammarCompiler, structure, source, text) -> None:
    matcher = xgrammar.GrammarMatcher(compiler.compile(structure(source)))
    thought = "hm" if structure is behind_a_thought else ""

    assert matcher.accept_string(thought + text)
    assert matcher.is_completed()


@pytest.mark.parametrize("structure", [alone, behind_a_thought])
@pytest.mark.parametrize(
    ("source", "why"),
    [
        ('start ::= "a"', 'root rule with name "root" is not found'),
        ('root: "a"', "no start rule found"),
        ('root = "a"', "line 1, column 6: expected ':' after rule name"),
        ('start: %json {"type": "integer", "not": {"const": 1}}', "%json is not supported"),
        ('root ::= "a" b\nb: "b"', "line 2, column 2: Unexpected character: ':'"),
    ],
)
def test_what_is_neither_or_holds_a_schema_is_refused(
    compiler: GrammarCompiler, structure, source, why
) -> None:
    with pytest.raises(StructureError, match=why):
        compiler.compile(structure(source))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "uniqueItems": True},
        {"type": "integer", "maximum": 2**64 - 1},
        {"type": "integer", "exclusiveMinimum": 2**63 - 1},
        {"type": "string", "pattern": r"^\p{L}+$"},
        {"type": "string", "pattern": r"^(a)\1$"},
        {"type": "string", "pattern": "("},
    ],
    ids=json.dumps,
)
def test_what_cannot_be_enforced_is_any_object_where_that_will_do(
    compiler: GrammarCompiler, schema
) -> None:
    asked = {"type": "json_schema", "json_schema": {"type": "object", "properties": {"a": schema}}}
    optional = Structure(kind="structural_tag", source=json.dumps({**asked, "is_optional": True}))
    matcher = xgrammar.GrammarMatcher(compiler.compile(optional))

    assert matcher.accept_string('{"b": [1, 1]}')
    assert matcher.is_completed()
    with pytest.raises(StructureError):
        compiler.compile(Structure(kind="structural_tag", source=json.dumps(asked)))
