"""Draws random outputs that a grammar allows, over a vocabulary of bytes."""

import random
from collections.abc import Sequence
from typing import Any

import torch
import xgrammar

EOS = 256
BYTES = [bytes([byte]) for byte in range(256)]
_USUAL = frozenset(b'"}],:{[0123456789abcxyzTZ@.-+/ ')  # preferred nine times in ten
_CLOSING = frozenset(b'"}],:')


def sample(grammar: Any, source: random.Random, vocab_size: int = EOS + 1) -> Sequence[int] | None:
    """Return the token ids of an output; None if it does not end within 300 tokens."""
    matcher = xgrammar.GrammarMatcher(grammar)
    words = xgrammar.allocate_token_bitmask(1, vocab_size)
    output: list[int] = []
    for place in range(300):
        matcher.fill_next_token_bitmask(words)
        bits = (words[0][:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        allowed = set(bits.flatten()[:vocab_size].nonzero().flatten().tolist())
        assert allowed, "a dead end"
        if EOS in allowed and (len(allowed) == 1 or source.random() < 0.5):
            return output
        allowed.discard(EOS)
        usual = allowed & (_CLOSING if place > 40 and source.random() < 0.5 else _USUAL)
        chosen = source.choice(sorted(usual if usual and source.random() < 0.9 else allowed))
        output.append(chosen)
        assert matcher.accept_token(chosen)
    return None
