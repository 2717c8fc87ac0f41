"""A tokenizer.json made of a GGUF file says what the file says, as llama.cpp understands it."""

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from engine.checkpoint.gguf_tokens import put_right, role_tokens

TOKENS = ["a", "b", "ab", "abb", "<|begin|>", "<|end|>"]


def _tokenizer(**said: Any) -> Tokenizer:
    """Return what becomes of a file with these fields under `tokenizer.ggml.`."""
    vocab = {token: token_id for token_id, token in enumerate(TOKENS)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    # A control token that transformers' class has, unlike the file, and what stands for padding.
    special = ["<|endoftext|>", TOKENS[said.get("padding_token_id", 5)]]
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    content = json.loads(made.to_str())
    put_right(content, _said(**said))
    return Tokenizer.from_str(json.dumps(content))


def _sentencepiece(text: str, **said: Any) -> list[str]:
    """Return the tokens of a text in such a vocabulary."""
    tokens = ["<s>", "</s>", "<unk>", "\u2581", "a", "\u2581a"]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("\u2581", "a")], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    content = json.loads(made.to_str())
    types, roles = [3, 3, 2, 1, 1, 1], {"bos_token_id": 0, "eos_token_id": 1}
    fields = {"model": "llama", "tokens": tokens, "token_type": types, **roles, **said}
    put_right(content, _said(**fields))
    pieces: list[str] = Tokenizer.from_str(json.dumps(content)).encode(text).tokens
    return pieces


def _said(**said: Any) -> dict[str, Any]:
    fields = {
        "model": "gpt2",
        "tokens": TOKENS,
        "token_type": [1, 1, 1, 1, 3, 3],
        "bos_token_id": 4,
        "eos_token_id": 5,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (fields | said).items()}


def test_a_token_that_the_file_lacks_is_no_token() -> None:
    tokenizer = _tokenizer()
    assert tokenizer.get_vocab_size() == len(TOKENS)
    assert tokenizer.token_to_id("<|endoftext|>") is None


@pytest.mark.parametrize("split", ["llama-bpe", "tekken"])
def test_a_word_that_is_a_token_is_taken_whole_where_llama_3s_split_says_so(split: str) -> None:
    assert _tokenizer(pre=split).encode("abb").ids == [4, 3]
    assert _tokenizer(pre="qwen2").encode("abb").ids == [2, 1]


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        ({}, [2]),
        ({"add_bos_token": True}, [4, 2]),
        ({"add_bos_token": True, "add_eos_token": True}, [4, 2, 5]),
        ({"add_bos_token": True, "bos_token_id": None}, [2]),
        ({"pre": "llama-bpe"}, [4, 2]),
        ({"pre": "llama-bpe", "add_bos_token": False}, [2]),
        ({"model": "llama"}, [4, 2]),
    ],
)
def test_a_text_begins_and_ends_as_in_llama_cpp(said: dict[str, Any], ids: list[int]) -> None:
    assert _tokenizer(**said).encode("ab").ids == ids
    assert _tokenizer(**said).encode("ab", add_special_tokens=False).ids == [2]


def test_a_token_with_a_role_is_a_control_token_whatever_its_type() -> None:
    tokenizer = _tokenizer(token_type=[1] * len(TOKENS))
    assert tokenizer.encode("a<|end|>").ids == [0, 5]
    assert tokenizer.decode([0, 5]) == "a"
    assert role_tokens(_said()) == {"bos_token": "<|begin|>", "eos_token": "<|end|>"}


def test_ordinary_text_has_no_role_beyond_beginning_and_ending() -> None:
    said = {"padding_token_id": 0, "unknown_token_id": 1}
    assert role_tokens(_said(**said)).keys() == {"bos_token", "eos_token"}
    assert _tokenizer(**said).decode([0, 1, 2]) == "abab"


def test_sentencepiece_puts_a_space_before_a_text_and_after_every_control_token() -> None:
    assert _sentencepiece("a</s>a a") == ["<s>", "\u2581a", "</s>", "\u2581a", "\u2581a"]
    assert _sentencepiece(" a") == ["<s>", "\u2581", "\u2581a"]
    assert _sentencepiece("") == ["<s>"]
    bare = _sentencepiece("a</s>a a", add_space_prefix=False)
    assert bare == ["<s>", "a", "</s>", "a", "\u2581a"]


def test_kinds_without_merges_are_left_as_they_are() -> None:
    content = {"model": {"vocab": [["a", 0.0]]}}
    put_right(content, _said(model="t5"))
    assert content == {"model": {"vocab": [["a", 0.0]]}}
