"""`Structure` -> compiled grammar, for one vocabulary. Runs in the worker, without limits of time
or memory: HTTP offers no structures until something bounds it.

Raises `StructureError`, with a text for the client, for whatever xgrammar refuses and for what it
would silently not honour.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from engine.request import Structure

_MAX_WHITESPACE = 32  # in a row between JSON's elements, so that no output is white space for ever
_POSITION = re.compile(r"^\[[^\]]*\] \S+?:\d+: ")  # xgrammar's time and C++ source line

# Keywords whose meaning xgrammar 0.2.8 drops: refused, never ignored. Some combinations are
# dropped as well (pattern beside maxLength, unknown formats, overlapping oneOf): still to refuse.
_NOT_HONOURED = frozenset(
    (
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems"),
        *("dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef"),
        *("contentEncoding", "contentMediaType", "contentSchema"),
    )
)
_DATA = frozenset(("const", "enum", "default", "examples"))  # keywords that hold no schemas
_NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions"))


class StructureError(ValueError):
    """A structure that cannot be followed."""


class GrammarCompiler:
    """Compiles for one vocabulary, in the calling thread, without a cache."""

    def __init__(self, vocabulary: Sequence[bytes], eos_token_ids: Sequence[int]) -> None:
        """Args:
        vocabulary: [V] bytes of every token id; empty for control tokens, which never match.
        """
        import xgrammar

        info = xgrammar.TokenizerInfo(
            list(vocabulary),
            xgrammar.VocabType.RAW,
            vocab_size=len(vocabulary),
            stop_token_ids=list(eos_token_ids),
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, structure: Structure) -> Any:
        """An `xgrammar.CompiledGrammar`.

        Raises:
            StructureError: if the structure is wrong, or asks for what is not supported.
        """
        try:
            return self._compile(structure)
        except (RuntimeError, ValueError, TypeError, RecursionError) as error:
            text = _POSITION.sub("", str(error)).strip().splitlines()
            raise StructureError(text[0] if text else type(error).__name__) from error

    def _compile(self, structure: Structure) -> Any:
        source = structure.source
        if structure.kind == "regex":
            return self._compiler.compile_regex(source)
        if structure.kind == "grammar":
            return self._compiler.compile_grammar(source)
        if structure.kind == "structural_tag":
            return self._compiler.compile_structural_tag(source)
        if structure.kind == "json_object":
            source = '{"type": "object"}'
        for keyword in _dropped_keywords(json.loads(source)):
            raise StructureError(f"the schema keyword {keyword} is not supported")
        return self._compiler.compile_json_schema(source, max_whitespace_cnt=_MAX_WHITESPACE)


def _dropped_keywords(schema: Any) -> Iterator[str]:
    """Keywords of a schema and its sub-schemas that would not be honoured."""
    if isinstance(schema, list):
        for item in schema:
            yield from _dropped_keywords(item)
    elif isinstance(schema, dict):
        for keyword, value in schema.items():
            if keyword in _NOT_HONOURED:
                yield keyword
            elif keyword in _NAMED and isinstance(value, dict):
                yield from _dropped_keywords(list(value.values()))
            elif keyword not in _DATA:
                yield from _dropped_keywords(value)
