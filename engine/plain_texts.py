"""What tokens spell, remembered where it is the same wherever they stand: most need no more than a
look. Knows a tokenizer; shared by the detokenizers of all requests.
"""

from typing import Protocol


class TokenSpeller(Protocol):
    """The part of `engine.tokenizer.Tokenizer` that is needed here."""

    strips_first_space: bool

    def is_special(self, token_id: int) -> bool:
        """Whether the token has no place in the text."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes it stands for."""


class PlainTexts(dict[int, str | None]):
    """By id, the texts of tokens that are ASCII and no control tokens; None for all others.

    Filled as tokens are looked up, by `[]`.
    """

    def __init__(self, speller: TokenSpeller) -> None:
        super().__init__()
        self.speller = speller

    def __missing__(self, token_id: int) -> str | None:
        piece = self.speller.token_bytes(token_id)
        is_plain = piece.isascii() and not self.speller.is_special(token_id)
        text = self[token_id] = piece.decode() if is_plain else None
        return text
