"""The decode step's view of the decoder: the parts of a pass. Here they are simply called; see
`graph_runner` for the other way.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from engine.model.decoder import Decoder, Segment
from engine.model.ops.interface import LayerCache, TokenBatch


class SegmentRunner(Protocol):
    """Runs the parts of a pass, one at a time."""

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [T] int32 -> hidden states [T, E]."""

    def run(self, index: int, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """Segment number `index` over hidden [T, E] -> a new tensor [T, E]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Last hidden states [T, E] -> logits [T, V] float32, valid until the next call."""


class EagerRunner:
    """Calls the decoder."""

    def __init__(
        self, decoder: Decoder, segments: Sequence[Segment], cache: Sequence[LayerCache]
    ) -> None:
        self._decoder = decoder
        self._segments = segments
        self._cache = cache

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `SegmentRunner.embed`."""
        return self._decoder.embed(token_ids)

    def run(self, index: int, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """See `SegmentRunner.run`."""
        return self._decoder.run(hidden, self._segments[index], self._cache, batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `SegmentRunner.logits`."""
        return self._decoder.logits(hidden)
