"""`Structure` → compiled grammar, for one vocabulary.

Compiling takes as much time and memory as the source demands, so `engine.grammar.forge` tries each
one within limits before anything else compiles it.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from engine.errors import StructureError
from engine.grammar.keywords import Schema
from engine.grammar.schema import lowered
from engine.grammar.strings import check_regex
from engine.request import Structure

_MAX_WHITESPACE = 32  # characters in a row between JSON elements, so that no output is endless
_POSITION = re.compile(r"^\[[^\]]*\] \S+?:\d+: ")  # xgrammar's prefix: time, C++ source line
_EBNF_RULE = re.compile(r"^\s*[\w.-]+\s*::=", re.MULTILINE)  # Lark has `::=` in texts only
_LARK_SCHEMA = re.compile(r"%json\s*\{")
_ANY_OBJECT = {"type": "object"}
_REFUSALS = (RuntimeError, ValueError, TypeError, OverflowError, RecursionError)  # xgrammar's


class GrammarCompiler:
    """Compiles structures for one vocabulary, in the calling thread, without a cache."""

    def __init__(self, vocabulary: Sequence[bytes], eos_token_ids: Sequence[int]) -> None:
        """
        Args:
            vocabulary: Bytes of every token id [V]; empty ones never match.
            eos_token_ids: Token ids that end a sequence.
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
        """Compile a structure into an `xgrammar.CompiledGrammar`.

        Raises:
            StructureError: It is malformed, or asks for something that is not supported.
        """
        try:
            return self._compile(structure)
        except StructureError:
            raise
        except _REFUSALS as error:
            raise StructureError(_told(error)) from error

    def _compile(self, structure: Structure) -> Any:
        source = structure.source
        if structure.kind == "regex":
            check_regex(source)
            return self._compiler.compile_regex(source)
        if structure.kind == "grammar":
            if _is_ebnf(source):
                return self._compiler.compile_grammar(source)
            return self._compiler.compile_lark(source)
        if structure.kind == "structural_tag":
            tag = {"type": "structural_tag", "format": _with_lowered(json.loads(source))}
            return self._compiler.compile_structural_tag(json.dumps(tag))
        schema = lowered(json.loads(source) if source else _ANY_OBJECT)
        return self._compiler.compile_json_schema(
            json.dumps(schema), max_whitespace_cnt=_MAX_WHITESPACE
        )


def _with_lowered(format_: Any) -> Any:
    """Return a structural tag's format with every JSON schema in it lowered, and grammars in EBNF.

    A schema marked `is_optional` becomes any object where it cannot be enforced.
    """
    if isinstance(format_, list):
        return [_with_lowered(each) for each in format_]
    if not isinstance(format_, dict):
        return format_
    if format_.get("type") == "regex":
        check_regex(format_["pattern"])
    if format_.get("type") == "grammar":
        return {"type": "grammar", "grammar": _in_ebnf(format_["grammar"])}
    if format_.get("type") == "json_schema":
        lower = _lowered_if_enforced if format_.get("is_optional") else lowered
        return {
            "type": "json_schema",
            "json_schema": lower(format_["json_schema"]),
            "max_whitespace_cnt": _MAX_WHITESPACE,
        }
    return {name: _with_lowered(value) for name, value in format_.items()}


def _lowered_if_enforced(schema: Any) -> Schema:
    """Return a schema lowered, or any object if it cannot be enforced."""
    import xgrammar

    try:
        lower = lowered(schema)
        # Some that are lowered are refused all the same, such as patterns with \p or \1.
        xgrammar.Grammar.from_json_schema(json.dumps(lower), max_whitespace_cnt=_MAX_WHITESPACE)
    except (StructureError, *_REFUSALS):
        return lowered(_ANY_OBJECT)
    return lower


def _is_ebnf(grammar: str) -> bool:
    """Whether a grammar is EBNF, not Lark.

    Raises:
        StructureError: It is Lark with a JSON schema in it, which xgrammar enforces in parts only.
    """
    if _EBNF_RULE.search(grammar):
        return True
    if _LARK_SCHEMA.search(grammar):
        raise StructureError("%json is not supported within a grammar")
    return False


def _in_ebnf(grammar: str) -> str:
    """Return a grammar in the only form that a structural tag takes."""
    if _is_ebnf(grammar):
        return grammar
    import xgrammar

    return str(xgrammar.Grammar.from_lark(grammar))


def _told(error: Exception) -> str:
    """Return the first line of xgrammar's message, without source position and full stop."""
    lines = _POSITION.sub("", str(error)).strip().splitlines()
    return lines[0].removesuffix(".") if lines else type(error).__name__
