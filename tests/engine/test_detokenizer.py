"""Text streamed in any chunks equals text decoded at once; stop strings are cut and never leak."""

from collections.abc import Sequence
from functools import cache
from itertools import product

import pytest
from default_model import default_model_directory
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.detokenizer import Detokenizer, FoundStop
from engine.plain_texts import PlainTexts, TokenSpeller
from engine.request import SamplingParams
from engine.tokenizer import Tokenizer, load_tokenizer

SPECIAL = 256


class Bytes:
    """A tokenizer whose ids are byte values; 256 is special, above that ids are unknown."""

    strips_first_space = False

    def is_special(self, token_id: int) -> bool:
        return token_id == SPECIAL

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""


class Words(Bytes):
    """A tokenizer whose ids are indices into a fixed list of pieces."""

    pieces = ("ab", "c", "abc", "a", "b", "bca", "\u4e16", "<", "end", ">", "\n\n", "aab")

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id].encode()


@cache
def _default_tokenizer() -> Tokenizer:
    return load_tokenizer(default_model_directory())


def _stream(
    tokenizer: TokenSpeller,
    ids: Sequence[int],
    sizes: Sequence[int] = (),
    sampling: SamplingParams | None = None,
    prompt: Sequence[int] = (),
) -> tuple[str, str | None, int]:
    """Return text, stop string, and number of kept tokens; `sizes` are repeated chunk lengths."""
    detokenizer = Detokenizer(PlainTexts(tokenizer), sampling or SamplingParams(), prompt)
    text, kept, start, turn = "", 0, 0, 0
    while True:
        size = sizes[turn % len(sizes)] if sizes else 1
        chunk, start, turn = ids[start : start + size], start + size, turn + 1
        is_final = start >= len(ids)
        text += detokenizer.push(chunk, is_final)
        stop = detokenizer.found_stop
        kept += len(chunk) if stop is None else stop.num_tokens_kept
        if stop is not None or is_final:
            return text, stop and stop.text, kept


def _expected(
    pieces: Sequence[str], stops: Sequence[str], include: bool
) -> tuple[str, str | None, int]:
    """Compute the results of `_stream` character by character."""
    text = ""
    for index, piece in enumerate(pieces):
        for character in piece:
            text += character
            ended = [stop for stop in stops if text.endswith(stop)]
            if ended:
                longest = max(ended, key=len)
                return text if include else text[: -len(longest)], longest, index + 1
    return text, None, len(pieces)


_SIZES = st.lists(st.integers(1, 7), max_size=4)


@given(data=st.binary(), sizes=_SIZES)
def test_any_bytes_in_any_chunks(data: bytes, sizes: list[int]) -> None:
    assert _stream(Bytes(), data, sizes)[0] == data.decode(errors="replace")


@given(text=st.text(), sizes=_SIZES)
def test_no_replacement_character_for_text(text: str, sizes: list[int]) -> None:
    detokenizer = Detokenizer(PlainTexts(Bytes()), SamplingParams(), ())
    so_far = ""
    for byte in text.encode():
        so_far += detokenizer.push([byte], False)
        assert text.startswith(so_far)
    assert so_far == text


@given(
    ids=st.lists(st.integers(0, len(Words.pieces) - 1), max_size=30),
    stops=st.lists(st.text("abc<\n\u4e16", min_size=1, max_size=5), max_size=4),
    sizes=_SIZES,
    include=st.booleans(),
)
def test_stop_strings(ids: list[int], stops: list[str], sizes: list[int], include: bool) -> None:
    sampling = SamplingParams(stop=tuple(stops), include_stop_str_in_output=include)
    pieces = [Words.pieces[token_id] for token_id in ids]
    assert _stream(Words(), ids, sizes, sampling) == _expected(pieces, stops, include)


def test_a_stop_string_is_found_wherever_a_false_start_of_it_ends() -> None:
    for letters in product("ab", repeat=6):
        stop = "".join(letters) + "c"
        for cut in range(1, 7):
            begun = stop[:cut]
            found = _stream(Bytes(), (begun + stop).encode(), (), SamplingParams(stop=(stop,)))
            assert found == (begun, stop, cut + 7)


def test_of_stop_strings_that_end_together_the_longest_is_cut() -> None:
    sampling = SamplingParams(stop=("c", "bc", "abc", "xbc"))
    assert _stream(Bytes(), b"aabc", (), sampling) == ("a", "abc", 4)


def test_a_stop_string_is_found_in_what_the_end_of_the_output_completes() -> None:
    sampling = SamplingParams(stop=("\ufffd",))
    assert _stream(Bytes(), b"a\xe4", (), sampling) == ("a", "\ufffd", 2)


def test_held_text_comes_out_when_it_was_no_stop_string() -> None:
    detokenizer = Detokenizer(PlainTexts(Bytes()), SamplingParams(stop=("</s>",)), ())
    assert detokenizer.push(b"x</", False) == "x"
    assert detokenizer.push(b"t", False) == "</t"
    assert detokenizer.push(b"<", False) == ""
    assert detokenizer.push(b"", True) == "<"


def test_tokens_after_the_stop_are_not_kept() -> None:
    detokenizer = Detokenizer(PlainTexts(Bytes()), SamplingParams(stop=("b",)), ())
    assert detokenizer.push(b"abc", False) == "a"
    assert detokenizer.found_stop == FoundStop("b", num_tokens_kept=2)


def test_min_tokens_come_before_any_stop_string() -> None:
    sampling = SamplingParams(stop=("a",), min_tokens=3)
    assert _stream(Bytes(), b"aaaa", (), sampling) == ("aaa", "a", 4)


def test_special_tokens_are_skipped_even_inside_a_character() -> None:
    ids = [*b"\xe4\xb8", SPECIAL, 0x96]
    assert _stream(Bytes(), ids)[0] == "\u4e16"


def test_the_first_space_of_sentencepiece() -> None:
    class Spaces(Bytes):
        strips_first_space = True

    assert _stream(Spaces(), b" a b")[0] == "a b"
    assert _stream(Spaces(), [300, *b" a b"])[0] == "a b"  # a token without bytes has none
    assert _stream(Spaces(), b" a b", prompt=[SPECIAL])[0] == "a b"
    assert _stream(Spaces(), b" a b", prompt=[SPECIAL, 65])[0] == " a b"


def test_a_long_stop_string_costs_linear_time() -> None:
    sampling = SamplingParams(stop=("a" * 50_000 + "b",))
    assert _stream(Bytes(), b"a" * 100_000, [1000], sampling)[1] is None


@pytest.mark.model
@settings(deadline=None, max_examples=200)
@given(ids=st.lists(st.integers(0, 49_151), max_size=40), sizes=_SIZES)
def test_random_ids_of_the_default_model(ids: list[int], sizes: list[int]) -> None:
    tokenizer = _default_tokenizer()
    assert _stream(tokenizer, ids, sizes)[0] == tokenizer.decode(ids)


@pytest.mark.model
@settings(deadline=None, max_examples=200)
@given(text=st.text(), sizes=_SIZES)
def test_texts_of_the_default_model(text: str, sizes: list[int]) -> None:
    tokenizer = _default_tokenizer()
    ids = tokenizer.encode(text)
    assert _stream(tokenizer, ids, sizes)[0] == tokenizer.decode(ids)


@pytest.mark.model
@pytest.mark.parametrize(
    "text", ["\U0001f9d1\U0001f3fd\u200d\U0001f680 ok", "\u4f60\u597d\uff0c\u4e16\u754c", "e\u0301"]
)
def test_emoji_and_cjk(text: str) -> None:
    tokenizer = _default_tokenizer()
    assert _stream(tokenizer, tokenizer.encode(text))[0] == text


def test_special_tokens_are_spelled_when_the_request_keeps_them() -> None:
    class Marked(Bytes):
        def token_bytes(self, token_id: int) -> bytes:
            return b"<s>" if token_id == SPECIAL else super().token_bytes(token_id)

    sampling = SamplingParams(skip_special_tokens=False)
    assert _stream(Marked(), [97, SPECIAL, 98], sampling=sampling)[0] == "a<s>b"
    assert _stream(Marked(), [97, SPECIAL, 98])[0] == "ab"
