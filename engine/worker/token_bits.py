"""Sets of tokens as bits, 32 to a word, the lowest first, as xgrammar writes and `Ops.exclude`
reads them. They are small enough to be sent to the device for every position of a batch.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

TokenBits = NDArray[np.int32]  # [words]; bits beyond the vocabulary are 0


def num_words(vocab_size: int) -> int:
    """Return the number of words of a set."""
    return -(-vocab_size // 32)


def token_bits(token_ids: Iterable[int], vocab_size: int) -> TokenBits:
    """Return the set of the given tokens.

    Raises:
        IndexError: A token is not in the vocabulary.
    """
    are_in = np.zeros(32 * num_words(vocab_size), dtype=np.bool_)
    are_in[:vocab_size][list(token_ids)] = True
    return np.packbits(are_in, bitorder="little").view(np.int32)


def all_tokens(vocab_size: int) -> TokenBits:
    """Return the set of the whole vocabulary."""
    bits = np.full(num_words(vocab_size), -1, dtype=np.int32)
    if rest := vocab_size % 32:
        bits[-1] = (1 << rest) - 1
    return bits


def has_token(bits: TokenBits, token_id: int) -> bool:
    """Whether a token of the vocabulary is in the set."""
    return bool(bits[token_id >> 5] >> (token_id & 31) & 1)
