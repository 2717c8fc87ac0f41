"""The decode step's view of the decoder: the parts of a pass. The runners here call the decoder;
`graph_runner` replays CUDA graphs instead.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from engine.model.decoder import Decoder, Segment
from engine.model.ops.interface import LayerCache, TokenBatch


class NewestTokens(NamedTuple):
    """One token per row with its position and slot: all tokens of a plain step."""

    token_ids: Sequence[int] | Tensor  # a tensor [T] if they are known on the device only
    places: Sequence[Sequence[int]]  # positions, slots and rows
    block_tables: Tensor


class SegmentRunner(Protocol):
    """Runs the parts of a pass, one at a time or all of them."""

    def run_through(self, tokens: NewestTokens) -> Tensor | None:
        """Run a whole pass; return the last hidden states [T, E], valid until the next call.

        Their logits may be computed already. None: the parts have to be run one by one.
        """

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the hidden states [T, E] of token ids [T] int32."""

    def run(self, index: int, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """Run a segment on hidden [T, E]; return a new tensor [T, E]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [T, V] float32 of last hidden states [T, E], valid until the next call."""


class PassObserver(Protocol):
    """Is shown what passes compute, for training.

    Attributes:
        layers: Layers, ascending, after which it sees the states, as it does after the last layer.
    """

    layers: list[int]

    def see_states(self, layer: int, hidden: Tensor, batch: TokenBatch) -> None:
        """See the hidden states [T, E] after a layer."""

    def see_logits(self, logits: Tensor) -> None:
        """See the logits [T, V] from which the next tokens are chosen."""


class EagerRunner:
    """Implements `SegmentRunner` by calling the decoder."""

    def __init__(
        self, decoder: Decoder, segments: Sequence[Segment], cache: Sequence[LayerCache]
    ) -> None:
        self._decoder = decoder
        self._segments = segments
        self._cache = cache

    def run_through(self, tokens: NewestTokens) -> Tensor | None:
        """See `SegmentRunner.run_through`; calling the parts costs no more than one call would."""
        return None

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `SegmentRunner.embed`."""
        return self._decoder.embed(token_ids)

    def run(self, index: int, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """See `SegmentRunner.run`."""
        return self._decoder.run(hidden, self._segments[index], self._cache, batch)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `SegmentRunner.logits`."""
        return self._decoder.logits(hidden)


class ObservedRunner:
    """Implements `SegmentRunner` with one segment, cut where an observer sees the states."""

    def __init__(
        self, runner: SegmentRunner, segments: Sequence[Segment], observer: PassObserver
    ) -> None:
        """
        Args:
            segments: The runner's segments, which cover all layers.
        """
        self._runner = runner
        self._ends = [segment.end for segment in segments]
        self._observer = observer

    def run_through(self, tokens: NewestTokens) -> Tensor | None:
        """See `SegmentRunner.run_through`; the observer would see nothing of a whole pass."""
        return None

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `SegmentRunner.embed`."""
        return self._runner.embed(token_ids)

    def run(self, index: int, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """See `SegmentRunner.run`."""
        assert index == 0, "there is one segment"
        for inner, end in enumerate(self._ends):
            hidden = self._runner.run(inner, hidden, batch)
            self._observer.see_states(end, hidden, batch)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """See `SegmentRunner.logits`."""
        logits = self._runner.logits(hidden)
        self._observer.see_logits(logits)
        return logits
