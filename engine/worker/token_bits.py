"""Sets of tokens as bits, 32 to a word, the lowest first: what xgrammar writes and `Ops.exclude`
reads. Small enough to be sent to the device for every position of a batch.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

TokenBits = NDArray[np.int32]  # [W], bits beyond the vocabulary are 0


def num_words(vocab_size: int) -> int:
    """W."""
    return -(-vocab_size // 32)


def token_bits(token_ids: Iterable[int], vocab_size: int) -> TokenBits:
    """The set of some tokens.

    Raises:
        IndexError: one of them is not in the vocabulary.
    """
    are_in = np.zeros(32 * num_words(vocab_size), dtype=np.bool_)
    are_in[:vocab_size][list(token_ids)] = True
    return np.packbits(are_in, bitorder="little").view(np.int32)


def all_tokens(vocab_size: int) -> TokenBits:
    """The whole vocabulary."""
    bits = np.full(num_words(vocab_size), -1, dtype=np.int32)
    if rest := vocab_size % 32:
        bits[-1] = (1 << rest) - 1
    return bits


def has_token(bits: TokenBits, token_id: int) -> bool:
    """Whether a token of the vocabulary is in the set."""
    return bool(bits[token_id >> 5] >> (token_id & 31) & 1)
