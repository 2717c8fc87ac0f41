"""Compiled grammars by structure, for sequences that follow a structure.

Structures are prepared in a thread while steps run; those of open requests, after a restart of the
worker, before its first step. A step compiles what is missing all the same, such as a grammar that
has been evicted meanwhile.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.grammar.compiler import GrammarCompiler
from engine.plan import SequenceStart
from engine.request import Structure
from engine.vocabulary import load_vocabulary
from engine.worker.structure import StructureState

_MAX_CACHED_BYTES = 256 << 20

logger = logging.getLogger(__name__)


class Grammars:
    """Compiles each structure once and evicts the least recently used. Used by two threads."""

    def __init__(self, directory: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._directory = directory
        self._vocab_size = vocab_size
        self._eos_ids = list(eos_token_ids)
        self._compiler: GrammarCompiler | None = None
        self._compiled: OrderedDict[Structure, Any] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()  # guards the cache; never held while compiling
        self._compiling = threading.Lock()

    def prepare(self, structure: Structure) -> None:
        """Compile a structure. The first takes seconds: the vocabulary and xgrammar are loaded.

        Raises:
            StructureError: The structure cannot be followed.
        """
        self._compile(structure)

    def open(self, start: SequenceStart) -> StructureState:
        """Return a sequence's state in its structure; after a fault, one that allows nothing."""
        try:
            from xgrammar import GrammarMatcher

            structure = start.sampling.structure
            assert structure is not None, "a sequence with a structure"
            matcher = GrammarMatcher(self._compile(structure))
        except Exception:
            logger.exception("sequence %d: its structure cannot be used", start.sequence_id)
            return StructureState(None, self._vocab_size, (), ())
        output = start.token_ids[start.num_prompt_tokens :]
        return StructureState(
            matcher,
            self._vocab_size,
            self._eos_ids,
            output,
            stop_token_ids=start.stop_token_ids,
        )

    def _compile(self, structure: Structure) -> Any:
        compiled = self._recall(structure)
        if compiled is None:
            with self._compiling:
                compiled = self._recall(structure)  # by the other thread, meanwhile
                if compiled is None:
                    compiled = self._loaded_compiler().compile(structure)
                    self._remember(structure, compiled)
        return compiled

    def _loaded_compiler(self) -> GrammarCompiler:
        if self._compiler is None:
            vocabulary = load_vocabulary(self._directory, self._vocab_size)
            self._compiler = GrammarCompiler(vocabulary, self._eos_ids)
        return self._compiler

    def _recall(self, structure: Structure) -> Any:
        with self._lock:
            if structure in self._compiled:
                self._compiled.move_to_end(structure)
            return self._compiled.get(structure)

    def _remember(self, structure: Structure, compiled: Any) -> None:
        with self._lock:
            self._compiled[structure] = compiled
            self._num_bytes += compiled.memory_size_bytes
            while self._num_bytes > _MAX_CACHED_BYTES and len(self._compiled) > 1:
                _, oldest = self._compiled.popitem(last=False)
                self._num_bytes -= oldest.memory_size_bytes
