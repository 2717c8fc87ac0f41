"""Output token ids -> text that is safe to send, incrementally and in linear time.

Safe text ends neither within a character nor within what may become a stop string. There is one
detokenizer per request; it knows the bytes of tokens and nothing of how tokens are generated.
"""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from engine.plain_texts import PlainTexts
from engine.request import SamplingParams

_Characters = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class FoundStop:
    """A stop string that ended an output."""

    text: str  # the stop string
    num_tokens_kept: int  # of the last push, up to the one that completed the stop string


class _StopString:
    """Finds one stop string in a stream of characters (Knuth, Morris, Pratt)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0  # the stream ends with text[:num_matched]
        self._fallback = [0] * (len(text) + 1)
        length = 0
        for end in range(1, len(text)):
            while length and text[end] != text[length]:
                length = self._fallback[length]
            length += text[end] == text[length]
            self._fallback[end + 1] = length

    def advance(self, character: str) -> bool:
        """Take the next character; returns True if it completes the stop string."""
        while self.num_matched and character != self.text[self.num_matched]:
            self.num_matched = self._fallback[self.num_matched]
        self.num_matched += character == self.text[self.num_matched]
        return self.num_matched == len(self.text)


class Detokenizer:
    """Turns one request's output tokens into text.

    Invariant: what was returned so far, plus `_held`, is the decoded output; `_held` is the longest
    end of it with which a stop string begins.
    """

    def __init__(
        self, plain_texts: PlainTexts, sampling: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> None:
        self.found_stop: FoundStop | None = None  # set by the push that found it
        self._plain_texts = plain_texts
        self._speller = plain_texts.speller
        self._stops = [_StopString(text) for text in sampling.stop if text]
        self._includes_stop = sampling.include_stop_str_in_output
        self._num_unstoppable = sampling.min_tokens
        self._skips_special = sampling.skip_special_tokens
        self._characters = _Characters("replace")
        self._is_midway = False  # within a character, whose first bytes the decoder keeps
        self._held = ""
        self._strips_space = self._speller.strips_first_space and all(
            map(self._speller.is_special, prompt_token_ids)
        )

    def push(self, token_ids: Sequence[int], is_final: bool) -> str:
        """Take the next tokens; nothing may be pushed after the final ones or after a stop string.

        Args:
            token_ids: The next tokens.
            is_final: No token follows, so that whatever was held back is released.

        Returns:
            The new text that is safe to send; see also `found_stop`.
        """
        if self._stops:
            return self._push_watched(token_ids, is_final)
        text = "".join(map(self._text_of, token_ids))
        if is_final:
            text += self._characters.decode(b"", True)
        return text

    def _push_watched(self, token_ids: Sequence[int], is_final: bool) -> str:
        """Do what `push` does, for a request with stop strings."""
        released: list[str] = []
        for index, token_id in enumerate(token_ids):
            stop = self._push_text(self._text_of(token_id), released)
            if stop is not None:
                self.found_stop = FoundStop(stop, index + 1)
                return "".join(released)
        stop = self._push_text(self._characters.decode(b"", True), released) if is_final else None
        if stop is not None:
            self.found_stop = FoundStop(stop, len(token_ids))
        elif is_final:
            released.append(self._held)
            self._held = ""
        return "".join(released)

    def _text_of(self, token_id: int) -> str:
        """Return the characters that a token completes."""
        if not self._is_midway and not self._strips_space:
            plain = self._plain_texts[token_id]
            if plain is not None:
                return plain
        if self._skips_special and self._speller.is_special(token_id):
            return ""
        piece = self._speller.token_bytes(token_id)
        if self._strips_space and piece:
            self._strips_space = False
            piece = piece.removeprefix(b" ")
        text = self._characters.decode(piece)
        self._is_midway = bool(self._characters.getstate()[0])
        return text

    def _push_text(self, text: str, released: list[str]) -> str | None:
        """Release what is safe of held + text; returns the stop string found in it, if any."""
        if self._num_unstoppable > 0:
            self._num_unstoppable -= 1
            released.append(text)
            return None
        for index, character in enumerate(text):
            # Not `any`: every stop string has to see every character.
            completed = [stop.text for stop in self._stops if stop.advance(character)]
            if completed:
                stop_text = max(completed, key=len)
                kept = self._held + text[: index + 1]
                released.append(kept if self._includes_stop else kept[: -len(stop_text)])
                self._held = ""
                return stop_text
        self._held += text
        num_held = max((stop.num_matched for stop in self._stops), default=0)
        released.append(self._held[: len(self._held) - num_held])
        self._held = self._held[len(self._held) - num_held :]
        return None
