"""The plain text of a token is looked up once, and does not depend on the tokens around it."""

from engine.plain_texts import PlainTexts

PIECES = {0: b"a", 1: b" b\n", 2: "\u4e16".encode()[:2], 3: b"<s>", 4: b""}


class Speller:
    strips_first_space = False

    def __init__(self) -> None:
        self.asked: list[int] = []

    def is_special(self, token_id: int) -> bool:
        return token_id == 3

    def token_bytes(self, token_id: int) -> bytes:
        self.asked.append(token_id)
        return PIECES[token_id]


def test_what_is_ascii_and_no_control_token_is_plain() -> None:
    speller = Speller()
    texts = PlainTexts(speller)

    for _ in range(2):
        assert [texts[token_id] for token_id in PIECES] == ["a", " b\n", None, None, ""]
    assert speller.asked == list(PIECES)
