"""Where tokens begin in a text, in characters.

A token need not be whole characters: one that begins within a character is placed at its start.
"""

from collections.abc import Sequence

from engine import Tokenizer

_CONTINUATION = range(0x80, 0xC0)  # bytes of UTF-8 that begin no character


def offsets_in(tokenizer: Tokenizer, token_ids: Sequence[int], text: str) -> list[int]:
    """Return the offset of every token in the text that these tokens came from.

    Control tokens and a leading space that the tokenizer added are not in the text, and take no
    room.
    """
    data = text.encode("utf-8", "surrogatepass")
    place, num_begun = 0, 0  # a place in bytes, and the characters that begin before it
    offsets = []
    for token_id in token_ids:
        is_amid = place < len(data) and data[place] in _CONTINUATION
        offsets.append(num_begun - is_amid)
        end = min(len(data), place + _num_bytes(tokenizer, token_id, data, place))
        num_begun += sum(byte not in _CONTINUATION for byte in data[place:end])
        place = end
    return offsets


def _num_bytes(tokenizer: Tokenizer, token_id: int, data: bytes, place: int) -> int:
    """Return how many bytes of the text belong to the token that begins at `place`."""
    piece = tokenizer.token_bytes(token_id)
    if data.startswith(piece, place):
        return len(piece)
    if tokenizer.is_special(token_id):
        return 0
    is_padded = piece.startswith(b" ") and data.startswith(piece[1:], place)
    return len(piece) - is_padded


class OffsetCounter:
    """Counts the offsets of an output's tokens as they come."""

    def __init__(self, tokenizer: Tokenizer, start: int, *, skips_special: bool) -> None:
        """
        Args:
            tokenizer: The model's tokenizer.
            start: Characters of the answer's text before the output.
            skips_special: Control tokens are left out of the text.
        """
        self._tokenizer = tokenizer
        self._skips_special = skips_special
        self._num_begun = start
        self._num_missing = 0  # bytes of an unfinished character

    def push(self, token_id: int) -> int:
        """Return the offset of the next token."""
        offset = self._num_begun - (self._num_missing > 0)
        if self._skips_special and self._tokenizer.is_special(token_id):
            return offset
        for byte in self._tokenizer.token_bytes(token_id):
            if byte in _CONTINUATION and self._num_missing:
                self._num_missing -= 1
            else:
                self._num_begun += 1
                self._num_missing = _length(byte) - 1
        return offset


def _length(lead: int) -> int:
    """Return the number of bytes of a character that begins with the byte `lead`."""
    return 1 + (lead >= 0xC0) + (lead >= 0xE0) + (lead >= 0xF0)
