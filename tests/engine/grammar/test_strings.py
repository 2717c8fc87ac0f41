"""Classes of characters in patterns are those of ECMA-262, less what JSON escapes."""

import json
import re

import pytest
import xgrammar
from grammar_samples import BYTES, EOS

from engine.grammar.compiler import GrammarCompiler
from engine.request import Structure

pytestmark = pytest.mark.torch

SPACES = " \u00a0\u1680\u2000\u2005\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
OTHERS = "a_1-]^!~\x7f\u0085\u009f\u00a1é\u167f\u1681\u1fff\u200b\u2027\u202a\u202e\u2030\u205e"
OTHERS += "\u2060\u2fff\u3001\ufefe\uff00\uffff😀\U0010ffff"
ESCAPED = ('"', "\\", "\n", "\t", "\x00", "\x1f")


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler([*BYTES, b""], [EOS])


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        (r"\s", SPACES),
        (r"\S", OTHERS),
        (r"[\s]", SPACES),
        (r"[\S]", OTHERS),
        (r"[^\s]", OTHERS),
        (r"[^\S]", SPACES),
        (r"[\s\S]", SPACES + OTHERS),
        (r"[^\s\S]", ""),
        (r"[\s-a]", SPACES + "-a"),
        (r"[\S-]", OTHERS),
        (r"[^a\s]", OTHERS.replace("a", "")),
        (r"(?:\s|\S)", SPACES + OTHERS),
        (".", re.sub("[\u2028\u2029]", "", SPACES + OTHERS)),
        (r"[^]", SPACES + OTHERS),
        (r"[^ -\u{10ffff}]", ""),
        (r"[^\é]", (SPACES + OTHERS).replace("é", "")),
    ],
    ids=lambda value: value if len(value) < 12 else "",
)
def test_a_class_matches_what_it_does_elsewhere(
    compiler: GrammarCompiler, pattern: str, matched: str
) -> None:
    schema = json.dumps({"type": "string", "pattern": f"^{pattern}$"})
    grammar = compiler.compile(Structure(kind="json_schema", source=schema))

    def follows(character: str) -> bool:
        matcher = xgrammar.GrammarMatcher(grammar)
        return bool(matcher.accept_string(f'"{character}"')) and bool(matcher.is_completed())

    assert [each for each in SPACES + OTHERS if follows(each)] == [
        each for each in SPACES + OTHERS if each in matched
    ]
    assert not any(map(follows, ESCAPED))
