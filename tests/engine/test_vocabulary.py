"""The bytes that token ids stand for."""

import pytest
from default_model import default_model_directory

from engine.tokenizer import load_tokenizer
from engine.vocabulary import load_vocabulary

pytestmark = pytest.mark.model


def test_tokens_are_their_bytes_and_control_tokens_match_no_text() -> None:
    directory = default_model_directory()
    tokenizer = load_tokenizer(directory)
    size = tokenizer.vocab_size + 3
    vocabulary = load_vocabulary(directory, size)
    controls = [token_id for token_id in range(size) if tokenizer.is_special(token_id)]
    assert controls
    for token_id in controls:
        text = tokenizer.token_bytes(token_id)
        assert vocabulary[token_id] == b"\xff" + text
        assert tokenizer.control_token_id(text.decode()) == token_id
    others = set(range(tokenizer.vocab_size)) - set(controls)
    assert all(vocabulary[token_id] == tokenizer.token_bytes(token_id) for token_id in others)
    assert vocabulary[-3:] == [b""] * 3
    assert tokenizer.control_token_id("the") is None
