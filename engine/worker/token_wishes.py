"""What a request asks of single tokens whatever came before, computed once for all positions.

Knows the request's parameters and token ids; applies nothing.
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.plan import SequenceStart
from engine.worker.token_bits import TokenBits, token_bits


class TokenValues(NamedTuple):
    """Some tokens with a value each; a token that occurs twice has the same value."""

    ids: NDArray[np.int64]
    values: NDArray[np.float32]


class TokenWishes:
    """What one request asks of single tokens."""

    def __init__(self, start: SequenceStart) -> None:
        self._start = start
        self._allowed: TokenBits | None = None

    @cached_property
    def bias(self) -> TokenValues:
        """The logit bias, to be added to logits."""
        given = self._start.sampling.logit_bias
        ids = np.fromiter(given.keys(), dtype=np.int64, count=len(given))
        return TokenValues(ids, np.fromiter(given.values(), dtype=np.float32, count=len(given)))

    @cached_property
    def ends(self) -> TokenValues:
        """Tokens that end the sequence, with -inf, to be excluded while it is too short."""
        ids = np.array(self._start.stop_token_ids, dtype=np.int64)
        return TokenValues(ids, np.full(len(ids), -np.inf, dtype=np.float32))

    @cached_property
    def allows_ends_only(self) -> bool:
        """Whether all allowed tokens end the sequence."""
        allowed = self._start.sampling.allowed_token_ids
        return bool(allowed) and set(allowed) <= set(self._start.stop_token_ids)

    def allowed(self, vocab_size: int) -> TokenBits | None:
        """Return the tokens that the request allows; None: it allows all."""
        listed = self._start.sampling.allowed_token_ids
        if self._allowed is None and listed:
            self._allowed = token_bits(listed, vocab_size)
        return self._allowed
