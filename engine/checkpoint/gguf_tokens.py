"""Makes a tokenizer.json that transformers made of a GGUF file say what the file says.

transformers takes control tokens with characters beyond the byte alphabet, such as DeepSeek's, for
ordinary text and gives new ids to those that begin or end texts; it adds its own tokenizers'
control tokens; it does not know what llama.cpp takes `tokenizer.ggml.pre` to imply; and it begins
SentencePiece's texts with a space, but not what follows a control token.
"""

from collections.abc import Mapping
from typing import Any

Metadata = Mapping[str, Any]
TokenizerJson = dict[str, Any]

_BPE_KINDS = ("gpt2", "llama")  # of `tokenizer.ggml.model`: byte-level and SentencePiece's
# Of `tokenizer.ggml.token_type`; the last two are taken whole, and the last are part of the text.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "\u2581"
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_ENDS = ("bos_token", "eos_token")
# Where these split the text, llama.cpp takes a word that is a token for that token, whatever the
# merges make of it, and lets texts begin with the first token unless the file says otherwise.
_LIKE_LLAMA3 = frozenset(
    (
        "falcon-h1",
        "falcon3",
        "jina-v5-nano",
        "lfm2",
        "llama-bpe",
        "llama-v3",
        "llama3",
        "midm-2.0",
        "pixtral",
        "tekken",
    )
)
# How to split text before BPE where transformers' converter does not know `tokenizer.ggml.pre`.
PRE_TOKENIZERS: Mapping[str, TokenizerJson] = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
        ],
    }
}


def role_tokens(said: Metadata) -> dict[str, str]:
    """Return the tokens that have a role: `bos_token` and so on.

    Some files name a piece of ordinary text, often the first token, for padding or for what is
    unknown: it has no role, because a token with one is left out of the text.

    Args:
        said: The file's fields by name, its tokens among them.
    """
    tokens, kinds = said["tokenizer.ggml.tokens"], _kinds(said)
    ids = {role: said.get(f"tokenizer.ggml.{key}") for role, key in _ROLES.items()}
    return {
        role: tokens[token_id]
        for role, token_id in ids.items()
        if token_id is not None and (role in _ENDS or kinds.get(token_id) != _NORMAL)
    }


def _kinds(said: Metadata) -> dict[int, int]:
    return dict(enumerate(said.get("tokenizer.ggml.token_type") or ()))


def put_right(content: TokenizerJson, said: Metadata) -> None:
    """Change what a tokenizer.json has otherwise than the file.

    Args:
        content: What transformers made of the file.
        said: The file's fields by name, its tokens among them.
    """
    kind, split = (said.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind not in _BPE_KINDS:
        return
    _mark(content, said)
    begins = said.get("tokenizer.ggml.add_bos_token", kind == "llama" or split in _LIKE_LLAMA3)
    content["post_processor"] = _framing(said, begins=begins)
    if split in _LIKE_LLAMA3:
        content["model"]["ignore_merges"] = True
    content["pre_tokenizer"] = PRE_TOKENIZERS.get(split or "", content["pre_tokenizer"])
    if kind == "llama":
        content["normalizer"] = _spaces(said.get("tokenizer.ggml.add_space_prefix", True))
        content["pre_tokenizer"] = None


def _spaces(puts_one_first: bool) -> TokenizerJson:
    """Return the normalizer that spells spaces as SentencePiece does, one before every text.

    A text is whatever stands between tokens that are taken whole.
    """
    first = [{"type": "Prepend", "prepend": _SPACE}] if puts_one_first else []
    others = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    return {"type": "Sequence", "normalizers": [*first, others]}


def _mark(content: TokenizerJson, said: Metadata) -> None:
    """Have the tokens that are taken whole, and no others, under their own spelling and id."""
    tokens = said["tokenizer.ggml.tokens"]
    kinds, roles = _kinds(said), role_tokens(said).values()
    is_control = {
        token_id: kinds.get(token_id) != _USER_DEFINED
        for token_id, token in enumerate(tokens)
        if kinds.get(token_id) in (_CONTROL, _USER_DEFINED) or token in roles
    }
    pieces = {token_id: piece for piece, token_id in content["model"]["vocab"].items()}
    pieces |= {token_id: tokens[token_id] for token_id in is_control}
    content["model"]["vocab"] = {piece: token_id for token_id, piece in pieces.items()}
    marked = {
        each["id"]: each
        for each in content["added_tokens"]
        if each["id"] < len(tokens) and kinds.get(each["id"]) != _NORMAL
    }
    for token_id, special in is_control.items():
        marked[token_id] = {
            "id": token_id,
            "content": tokens[token_id],
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            "special": special,
        }
    content["added_tokens"] = [marked[token_id] for token_id in sorted(marked)]


def _framing(said: Metadata, *, begins: bool) -> TokenizerJson:
    """Return the post-processor that puts a text's first and last token around it, if any."""
    tokens = role_tokens(said)
    ends = said.get("tokenizer.ggml.add_eos_token", False)
    first = [tokens["bos_token"]] if begins and "bos_token" in tokens else []
    last = [tokens["eos_token"]] if ends and "eos_token" in tokens else []

    def framed(text: str) -> list[TokenizerJson]:
        before, after = (
            [{"SpecialToken": {"id": token, "type_id": 0}} for token in around]
            for around in (first, last)
        )
        return [*before, {"Sequence": {"id": text, "type_id": 0}}, *after]

    all_tokens = said["tokenizer.ggml.tokens"]
    return {
        "type": "TemplateProcessing",
        "single": framed("A"),
        "pair": [*framed("A"), *framed("B")],
        "special_tokens": {
            token: {"id": token, "ids": [all_tokens.index(token)], "tokens": [token]}
            for token in first + last
        },
    }
