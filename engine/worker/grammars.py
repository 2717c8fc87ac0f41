"""Compiled grammars by structure, for the sequences that follow one; loaded with the first."""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.grammar.compiler import GrammarCompiler
from engine.plan import SequenceStart
from engine.request import Structure
from engine.vocabulary import load_vocabulary
from engine.worker.structure import StructureState

_MAX_CACHED = 64

logger = logging.getLogger(__name__)


class Grammars:
    """Compiles each structure once; forgets those not used for longest."""

    def __init__(self, directory: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._directory = directory
        self._vocab_size = vocab_size
        self._eos_ids = list(eos_token_ids)
        self._compiler: GrammarCompiler | None = None
        self._compiled: OrderedDict[Structure, Any] = OrderedDict()

    def prepare(self) -> None:
        """Load the vocabulary and xgrammar: seconds, the first time."""
        if self._compiler is None:
            vocabulary = load_vocabulary(self._directory, self._vocab_size)
            self._compiler = GrammarCompiler(vocabulary, self._eos_ids)

    def open(self, start: SequenceStart) -> StructureState:
        """Where a sequence stands in its structure; a fault is that sequence's own."""
        try:
            from xgrammar import GrammarMatcher

            assert start.structure is not None, "a sequence with a structure"
            matcher = GrammarMatcher(self._compile(start.structure))
        except Exception:
            logger.exception("sequence %d: its structure cannot be used", start.sequence_id)
            return StructureState(None, self._vocab_size, (), ())
        ends = {*self._eos_ids, *start.stop_token_ids}
        output = start.token_ids[start.num_prompt_tokens :]
        return StructureState(matcher, self._vocab_size, sorted(ends), output)

    def _compile(self, structure: Structure) -> Any:
        self.prepare()
        assert self._compiler is not None, "just prepared"
        if structure not in self._compiled:
            self._compiled[structure] = self._compiler.compile(structure)
        self._compiled.move_to_end(structure)
        if len(self._compiled) > _MAX_CACHED:
            self._compiled.popitem(last=False)
        return self._compiled[structure]
