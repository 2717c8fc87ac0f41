"""The cost of the parts of a step by number of tokens: a curve for every segment, the evaluation of
every exit, and the end of the step.

A cost that is off makes drafting slower, never wrong.
"""

from collections.abc import Callable, Sequence

from engine.worker.cost_curve import CostCurve

_LOAD_RATE = 0.05  # share of one part's error that moves the others: load slows all parts down


class CostModel:
    """The cost of the parts of a step, which covers the Python around them once it was observed.

    Observations count from the next `settle` on, once a step: within a step the same costs are
    asked for many times and answered from memory.
    """

    def __init__(
        self,
        segments: Sequence[CostCurve],
        heads: Sequence[CostCurve],
        last_logits: CostCurve,
        steady: CostCurve | None = None,
        *,
        is_fixed: bool = True,
    ) -> None:
        """
        Args:
            segments: Cost of each segment.
            heads: Cost of evaluating each exit.
            last_logits: Cost of the final logits and all that follows.
            steady: Cost of a plain step that follows another one; None: the sum of its parts.
            is_fixed: Whether nothing is learned from observations.
        """
        self.segments = list(segments)
        self.heads = list(heads)
        self.last_logits = last_logits
        self._steady = steady
        self._is_fixed = is_fixed
        # Told of every observation: curve, tokens, seconds.
        self.on_observation: Callable[[CostCurve, int, float], None] | None = None
        self._observed: list[tuple[CostCurve, int, float]] = []
        # Costs asked for since the last `settle`.
        self._rests: dict[tuple[int, int], float] = {}
        self._downs: dict[tuple[int, int], float] = {}

    def segment(self, index: int, num_tokens: int) -> float:
        """Return the seconds to run a segment."""
        return self.segments[index](num_tokens)

    def head(self, index: int, num_tokens: int) -> float:
        """Return the seconds to evaluate the exit head after a segment and choose drafts."""
        return self.heads[index](num_tokens)

    def logits(self, num_tokens: int) -> float:
        """Return the seconds of the final logits and all that follows until the step's result."""
        return self.last_logits(num_tokens)

    def rest(self, first_segment: int, num_tokens: int) -> float:
        """Return the seconds from a segment to the end, final logits included, as one batch."""
        key = (first_segment, num_tokens)
        seconds = self._rests.get(key)
        if seconds is None:
            seconds = self._rests[key] = self._sum(first_segment, num_tokens)
        return seconds

    def down(self, exit_index: int, num_tokens: int) -> float:
        """Return the seconds from the first layer to an exit, as one batch."""
        key = (exit_index, num_tokens)
        seconds = self._downs.get(key)
        if seconds is None:
            curves = self.segments[: exit_index + 1]
            seconds = self._downs[key] = sum([curve(num_tokens) for curve in curves])
        return seconds

    def plain(self, num_rows: int) -> float:
        """Return the seconds of a step without drafts."""
        return self.rest(0, num_rows)

    def steady(self, num_rows: int) -> float:
        """Return the seconds of a step without drafts that follows another one.

        It may be faster than a step on its own, because its pass may have been launched before the
        tokens of the step before were read.
        """
        return self.plain(num_rows) if self._steady is None else self._steady(num_rows)

    def observe(self, curve: CostCurve, num_tokens: int, seconds: float) -> None:
        """Note what one part, one of the model's curves, took."""
        if self.on_observation is not None:
            self.on_observation(curve, num_tokens, seconds)
        if not self._is_fixed:
            self._observed.append((curve, num_tokens, seconds))

    def settle(self) -> None:
        """Learn from the observations since the last call."""
        if self._observed:
            for curve, num_tokens, seconds in self._observed:
                self._learn(curve, num_tokens, seconds)
            self._observed.clear()
            self._rests.clear()
            self._downs.clear()

    def _sum(self, first_segment: int, num_tokens: int) -> float:
        curves = self.segments[first_segment:]
        return sum([curve(num_tokens) for curve in curves]) + self.last_logits(num_tokens)

    def _learn(self, curve: CostCurve, num_tokens: int, seconds: float) -> None:
        share = min(curve(num_tokens) / self._sum(0, num_tokens), 1.0)
        error = curve.observe(num_tokens, seconds)
        # A plain step among others is measured as a whole: it needs no guess from its parts.
        for other in (*self.segments, *self.heads, self.last_logits):
            if other is not curve:
                other.scale(_LOAD_RATE * share * error)
