"""Tokens are located in their text, whatever the tokenizer has added or cut."""

import pytest

from server.render.text_offsets import OffsetCounter, offsets_in


class Pieces:
    """A tokenizer of fixed pieces; those in angle brackets are control tokens."""

    def __init__(self, *pieces: str | bytes) -> None:
        self._pieces = [p.encode() if isinstance(p, str) else p for p in pieces]

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]

    def is_special(self, token_id: int) -> bool:
        return self._pieces[token_id].startswith(b"<")

    @property
    def ids(self) -> range:
        return range(len(self._pieces))


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        (["Hel", "lo", " world"], "Hello world", [0, 3, 5]),
        (["<bos>", "Hel", "lo"], "Hello", [0, 0, 3]),
        (["a", "<end>", "b"], "a<end>b", [0, 1, 6]),
        ([" Hello", " you"], "Hello you", [0, 5]),
        (["é", b"\xf0\x9f", b"\x99\x82", "!"], "é🙂!", [0, 1, 1, 2]),
        ([b"a\xc3", b"\xa9b", "c"], "aébc", [0, 1, 3]),
        (["ab", "cd"], "a", [0, 1]),  # a text that these tokens do not spell
        ([], "a", []),
    ],
)
def test_offsets_in_a_text(pieces, text, expected):
    tokenizer = Pieces(*pieces)
    assert offsets_in(tokenizer, tokenizer.ids, text) == expected


@pytest.mark.parametrize("skips", [True, False])
def test_offsets_as_tokens_come(skips):
    tokenizer = Pieces("é", b"\xf0\x9f", b"\x99\x82", "<end>", "ab", "c")
    counter = OffsetCounter(tokenizer, 10, skips_special=skips)

    offsets = [counter.push(token_id) for token_id in tokenizer.ids]
    assert offsets[:4] == [10, 11, 11, 12]
    assert offsets[4:] == ([12, 14] if skips else [17, 19])
