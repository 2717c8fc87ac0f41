"""The bytes that token ids stand for, read from a checkpoint's tokenizer without transformers."""

import json
import re
from pathlib import Path

from engine.errors import ModelLoadError

_CONTROL = b"\xff"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def load_vocabulary(directory: Path, vocab_size: int) -> list[bytes]:
    """Return the bytes of every token id [V]; empty for ids that no token has.

    A control token's bytes begin with one that no text has, so that no grammar matches its text.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    special = {
        token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
    }
    added = {i: t.content.encode() for i, t in backend.get_added_tokens_decoder().items()}
    alphabet = byte_alphabet() if is_byte_level(backend.to_str()) else None
    vocabulary = [b""] * vocab_size
    for piece, token_id in backend.get_vocab(with_added_tokens=True).items():
        if token_id < vocab_size:
            spelled = added.get(token_id) or piece_bytes(piece, alphabet)
            vocabulary[token_id] = _CONTROL + spelled if token_id in special else spelled
    return vocabulary


def piece_bytes(piece: str, alphabet: dict[str, int] | None) -> bytes:
    """Return the bytes of a piece spelled in a byte alphabet or, without one, by SentencePiece."""
    if alphabet is not None:
        try:
            return bytes(alphabet[character] for character in piece)
        except KeyError:
            return piece.encode()
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()


def is_byte_level(backend: str) -> bool:
    """Whether pieces are spelled in GPT-2's byte alphabet rather than by SentencePiece.

    Args:
        backend: The content of tokenizer.json.

    Raises:
        ModelLoadError: They are spelled in neither way.
    """
    content = json.loads(backend)
    decoder = content.get("decoder") or {}
    kinds = {step["type"] for step in (decoder, *decoder.get("decoders", ()))} if decoder else set()
    if "ByteLevel" in kinds:
        return True
    if kinds & {"Metaspace", "ByteFallback"}:
        return False
    raise ModelLoadError(f"The tokenizer decodes through {sorted(kinds)}, which is not supported.")


def byte_alphabet() -> dict[str, int]:
    """Return GPT-2's spelling of bytes: printable Latin-1 as itself, others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }
