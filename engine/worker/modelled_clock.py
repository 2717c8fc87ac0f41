"""A clock that advances by the modelled cost of the parts of a step, not by the time they take.

Comparisons made with it are not disturbed by other work on the machine and are reproducible. What
runs between the parts takes no time.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from engine.model.exit_head import ExitHeads, Head
from engine.model.ops.interface import TokenBatch
from engine.worker.cost_model import CostModel
from engine.worker.segment_runner import NewestTokens, SegmentRunner


class ModelledClock:
    """A clock in seconds, advanced by the runner and the heads that it watches."""

    def __init__(self, cost: CostModel) -> None:
        """
        Args:
            cost: Cost of the parts of the steps.
        """
        self.cost = cost
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Advance the clock: a part has run."""
        self._now += seconds

    def watch_runner(self, runner: SegmentRunner) -> SegmentRunner:
        """Return a runner that does the same and advances this clock."""
        return _WatchedRunner(runner, self)

    def watch_heads(self, heads: ExitHeads) -> ExitHeads:
        """Return heads that do the same and advance this clock."""
        watched = [_WatchedHead(head, index, self) for index, head in enumerate(heads.heads)]
        return replace(heads, heads=watched)


class _WatchedRunner:
    """Implements `SegmentRunner`."""

    def __init__(self, runner: SegmentRunner, clock: ModelledClock) -> None:
        self._runner = runner
        self._clock = clock

    def run_through(self, tokens: NewestTokens) -> Tensor | None:
        return None  # only parts have a cost

    def embed(self, token_ids: Tensor) -> Tensor:
        return self._runner.embed(token_ids)

    def run(self, index: int, hidden: Tensor, batch: TokenBatch) -> Tensor:
        self._clock.advance(self._clock.cost.segment(index, len(hidden)))
        return self._runner.run(index, hidden, batch)

    def logits(self, hidden: Tensor) -> Tensor:
        self._clock.advance(self._clock.cost.logits(len(hidden)))
        return self._runner.logits(hidden)


class _WatchedHead:
    """Implements `Head`."""

    def __init__(self, head: Head, index: int, clock: ModelledClock) -> None:
        self._head = head
        self._index = index
        self._clock = clock

    @property
    def exit_layer(self) -> int:
        return self._head.exit_layer

    def __call__(
        self, hidden: Tensor, previous: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        self._clock.advance(self._clock.cost.head(self._index, len(hidden)))
        return self._head(hidden, previous, lengths)
