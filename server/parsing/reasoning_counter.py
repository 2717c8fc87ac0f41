"""Counts the tokens of a thought one by one, so the count does not depend on a stream's pieces."""

import codecs
from collections.abc import Sequence

from engine import Tokenizer
from server.parsing.reasoning import ReasoningSplitter


class ReasoningCounter:
    """Counts one choice's tokens up to the thought's end, its tags included."""

    def __init__(self, tokenizer: Tokenizer, splitter: ReasoningSplitter | None) -> None:
        """
        Args:
            tokenizer: The model's tokenizer.
            splitter: A new one, for this choice alone; None: the model does not think.
        """
        self._tokenizer = tokenizer
        self._splitter = splitter
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_tokens = 0  # seen before the answer began
        self._has_thought = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the thought so far."""
        return self._num_tokens if self._has_thought else 0

    def push(self, token_ids: Sequence[int]) -> None:
        """Take note of the next tokens."""
        for token_id in token_ids:
            if self._splitter is None:
                return
            self._num_tokens += 1
            if self._tokenizer.is_special(token_id):
                continue  # no part of the text
            text = self._characters.decode(self._tokenizer.token_bytes(token_id))
            self._has_thought |= self._splitter.is_inside
            for _ in self._splitter.push(text):
                pass  # only the splitter's state matters here
            self._has_thought |= self._splitter.is_inside
            if not self._splitter.is_inside and not self._splitter.is_undecided:
                self._splitter = None  # what follows is the answer
