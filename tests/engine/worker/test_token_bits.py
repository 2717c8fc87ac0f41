"""Sets of tokens as bits have the tokens they were made of, and no others."""

import pytest

from engine.worker.token_bits import all_tokens, has_token, token_bits


@pytest.mark.parametrize("size", [1, 31, 32, 33, 100])
def test_a_set_has_the_tokens_it_was_made_of_and_no_bits_beyond(size: int) -> None:
    some = {0, size - 1, size // 2}
    bits = token_bits(some, size)
    assert {i for i in range(32 * len(bits)) if has_token(bits, i)} == some
    assert all_tokens(size).tolist() == token_bits(range(size), size).tolist()
    assert not token_bits([], size).any()


def test_a_token_outside_the_vocabulary_is_no_member() -> None:
    with pytest.raises(IndexError):
        token_bits([40], 40)
