"""The decode step's view of the decoder: the parts of a pass. Here they are simply called; see
`graph_runner` for the other way.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from engine.model.decoder import Decoder, Segment
from engine.model.ops.interface import LayerCache, TokenBatch


class NewestTokens(NamedTuple):
    """One token of every row, where it stands, and nothing else: what a step has that decodes
    without drafts.
    """

    token_ids: Sequence[int] | Tensor  # a tensor [T]: on the device, and nowhere else yet
    places: Sequence[Sequence[int]]  # positions, slots and rows
    block_tables: Tensor


class SegmentRunner(Protocol):
    """Runs the parts of a pass, one at a time or all of them."""

    def run_through(self, tokens: NewestTokens) -> Tensor | None:
        """Token ids -> last hidden states [T, E], valid until the next call; their `logits` may be
        there already. None: the parts have to be run one by one.
        """

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [T] int32 -> hidden states [T, E]."""

    def run(self, index: int, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """Segment number `index` over hidden [T, E] -> a new tensor [T, E]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Last hidden states [T, E] -> logits [T, V] float32, valid until the next call."""


class PassObserver(Protocol):
    """Sees what passes compute, and keeps what it wants (training does)."""

    layers: list[int]  # it sees the states there, ascending, and the last layer's

    def see_states(self, layer: int, hidden: Tensor, batch: TokenBatch) -> None:
        """Hidden states [T, E] after a layer."""

    def see_logits(self, logits: Tensor) -> None:
        """Logits [T, V] of the tokens that are chosen for next."""


class EagerRunner:
    """Calls the decoder."""

    def __init__(
        self, decoder: Decoder, segments: Sequence[Segment], cache: Sequence[LayerCache]
    ) -> None:
        self._decoder = decoder
        self._segments = segments
        self._cache = cache

    def run_through(self, tokens: NewestTokens) -> Tensor | None:
        """See `SegmentRunner.run_through`: calling the parts costs what calling all costs."""
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
    """One segment to whoever calls it, cut where an observer wants to see the states."""

    def __init__(
        self, runner: SegmentRunner, segments: Sequence[Segment], observer: PassObserver
    ) -> None:
        """Args:
        segments: The runner's, all layers together.
        """
        self._runner = runner
        self._ends = [segment.end for segment in segments]
        self._observer = observer

    def run_through(self, tokens: NewestTokens) -> Tensor | None:
        """See `SegmentRunner.run_through`: then there would be nothing to see."""
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
