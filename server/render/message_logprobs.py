"""Sorts tokens' log-probabilities by the message they belong to; thoughts and calls get none."""

import codecs
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from engine.request import TokenLogprobs
from server.parsing.events import ContentText, OutputEvent
from server.parsing.output_parser import OutputFormat
from server.protocol.chat import TokenLogprob
from server.render.chat import token_logprobs
from server.render.common import AnswerFrame


class MessageLogprobs:
    """Sorts the log-probabilities of one response's tokens.

    It parses the tokens one by one with a parser of its own, so that a token's message does not
    depend on how a stream is cut into pieces.
    """

    def __init__(self, frame: AnswerFrame, output_format: OutputFormat) -> None:
        self._frame = frame
        again = replace(output_format, note_calls=None)  # the answer's own parser calls it
        self._parser = None if output_format.is_plain else again.parser()
        self._keeps_special = output_format.marks_are_special
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._undecided: list[tuple[TokenLogprobs, str]] = []  # tokens and their text
        self._ready: defaultdict[int, list[TokenLogprobs]] = defaultdict(list)
        self._num_messages = 0
        self._is_in_message = False

    def push(self, tokens: Sequence[TokenLogprobs]) -> None:
        """Take note of the next tokens."""
        if self._parser is None:
            self._ready[0] += tokens
            return
        for token in tokens:
            text = self._text(token.token_id)
            self._undecided.append((token, text))
            self._sort(self._parser.push(text))

    def finish(self) -> None:
        """Sort what is left, as no more tokens will come."""
        if self._parser is not None:
            self._sort(self._parser.finish())
        if self._is_in_message:
            self._ready[self._num_messages - 1] += [token for token, _ in self._undecided]

    def take(self, message: int) -> list[TokenLogprob]:
        """Return what there is for a message (counted from 0) and was not taken yet."""
        return token_logprobs(self._frame, self._ready.pop(message, []))

    def _sort(self, events: Sequence[OutputEvent]) -> None:
        for event in events:
            if isinstance(event, ContentText):
                self._give(event.text)
            else:
                self._is_in_message = False
                del self._undecided[:-1]  # the newest may also begin what follows

    def _give(self, text: str) -> None:
        """Give the message the undecided tokens within `text`.

        Tokens of a mark before it belong to no message, and those after it stay undecided.
        """
        spelled = "".join(each for _, each in self._undecided)
        begin = 0 if self._is_in_message else max(0, spelled.rfind(text))
        end = begin + len(text)
        self._num_messages += not self._is_in_message
        self._is_in_message = True
        at, rest = 0, []
        for token, each in self._undecided:
            if at >= end:
                rest.append((token, each))
            elif at + len(each) > begin or not each:
                self._ready[self._num_messages - 1].append(token)
            at += len(each)
        self._undecided = rest

    def _text(self, token_id: int) -> str:
        tokenizer = self._frame.tokenizer
        if tokenizer.is_special(token_id) and not self._keeps_special:
            return ""
        return self._characters.decode(tokenizer.token_bytes(token_id))
