"""Remembers the text of tokens that spell the same wherever they stand, as most do.

The detokenizers of all requests share it.
"""

from typing import Protocol


class TokenSpeller(Protocol):
    """The part of `engine.tokenizer.Tokenizer` that detokenizing needs."""

    strips_first_space: bool

    def is_special(self, token_id: int) -> bool:
        """Whether the token has no place in the text."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that the token stands for."""


class PlainTexts(dict[int, str | None]):
    """The texts of tokens by id; None for control tokens and for tokens that are not ASCII.

    Looking a token up with `[]` adds it.
    """

    def __init__(self, speller: TokenSpeller) -> None:
        super().__init__()
        self.speller = speller

    def __missing__(self, token_id: int) -> str | None:
        piece = self.speller.token_bytes(token_id)
        is_plain = piece.isascii() and not self.speller.is_special(token_id)
        text = self[token_id] = piece.decode() if is_plain else None
        return text
