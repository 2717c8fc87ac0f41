"""Who drafts on: a rule that goes on only while the batch's expected tokens per second rise.

A draft's chance comes from a calibrator (confidence -> P(accept)); a run of drafts survives with
the product of its chances; costs come from `cost_model`. Before each draft the policy compares the
step's expected tokens per second if it went down now with those after one more draft. It also
watches what drafting really yields and switches itself off, heads unevaluated, while plain decoding
is faster. Rows with a fixed threshold are decided by that alone.

Source of the product rule: SpecDec++ (Huang et al. 2025): optimal stopping thresholds P(any
rejection so far).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.model.exit_head import Calibration
from engine.worker.calibrator import Calibrator
from engine.worker.cost_model import CostModel

_WINDOW = 0.96  # decay per step of the measured gain: some 25 steps
_MIN_STEPS = 16  # before the gain is judged
_FIRST_PAUSE = 32  # steps without drafting after the first switch-off; doubles up to
_LONGEST_PAUSE = 1024


@dataclass(slots=True)
class Candidate:
    """A row that could draft one more token."""

    row: int
    confidence: float
    is_greedy: bool
    threshold: float | None
    survival: float  # P(all pending drafts of the row are accepted)
    probability: float = (
        0.0  # P(this one is accepted | the pending ones are), filled in by the policy
    )


@dataclass(slots=True)
class StepEstimate:
    """What the step has cost and promises so far."""

    num_tokens: int  # tokens that will reach the last pass
    expected_tokens: float  # tokens the step is expected to commit
    seconds: float = 0.0  # modelled, of the parts already run


class ExitPolicy:
    """Decides, for the batch as a whole, whether to draft on or go down."""

    def __init__(
        self, exit_layers: Sequence[int], calibration: Mapping[int, Calibration], cost: CostModel
    ) -> None:
        self._cost = cost
        self._calibrators = {
            (index, is_greedy): Calibrator(
                calibration[layer].edges,
                calibration[layer].greedy if is_greedy else calibration[layer].sampled,
            )
            for index, layer in enumerate(exit_layers)
            for is_greedy in (True, False)
        }
        self._gained = 0.0  # decayed: plain seconds that the committed tokens would have taken
        self._spent = 0.0  # decayed: seconds they took
        self._steps = 0
        self._pause = _FIRST_PAUSE
        self._paused_for = 0

    @property
    def is_drafting(self) -> bool:
        """Whether heads are evaluated at present (rows with a fixed threshold aside)."""
        return self._paused_for == 0

    @property
    def speedup(self) -> float:
        """Modelled gain over plain steps, recent steps only; 1.0 before there are any."""
        return self._gained / self._spent if self._spent else 1.0

    @property
    def reason(self) -> str:
        """Why drafting is on or off, for people."""
        if self.is_drafting:
            return f"drafting: {self.speedup:.2f}x plain over recent steps"
        return f"off: drafting did not pay; tries again in {self._paused_for} steps"

    def select(
        self, exit_index: int, candidates: Sequence[Candidate], step: StepEstimate
    ) -> list[Candidate]:
        """The candidates that draft, best first; empty: go down."""
        for candidate in candidates:
            calibrator = self._calibrators[exit_index, candidate.is_greedy]
            candidate.probability = calibrator.probability(candidate.confidence)
        fixed = [c for c in candidates if c.threshold is not None and c.confidence > c.threshold]
        free = [c for c in candidates if c.threshold is None] if self.is_drafting else []
        return fixed + self._worthwhile(exit_index, free, step, len(fixed))

    def _worthwhile(
        self, exit_index: int, candidates: Sequence[Candidate], step: StepEstimate, num_fixed: int
    ) -> list[Candidate]:
        """The prefix of the best candidates that raises expected tokens per second most."""
        ranked = sorted(candidates, key=lambda c: c.survival * c.probability, reverse=True)
        rest = self._cost.rest(exit_index + 1, step.num_tokens)
        best_rate = step.expected_tokens / (step.seconds + rest)
        best_count, expected = 0, step.expected_tokens
        for count, candidate in enumerate(ranked, start=1):
            expected += candidate.survival * candidate.probability
            seconds = step.seconds + self._seconds_with(exit_index, step, count + num_fixed)
            if expected / seconds > best_rate:
                best_rate, best_count = expected / seconds, count
        return ranked[:best_count]

    def _seconds_with(self, exit_index: int, step: StepEstimate, num_new: int) -> float:
        """Seconds to bring `num_new` drafts down to the exit, then everything to the end."""
        cost = self._cost
        down = sum(cost.segment(i, num_new) + cost.head(i, num_new) for i in range(exit_index + 1))
        return down + cost.rest(exit_index + 1, step.num_tokens + num_new)

    def observe_draft(
        self, exit_index: int, confidence: float, *, is_greedy: bool, accepted: bool
    ) -> None:
        """Learn one verified draft (one whose predecessors were all accepted)."""
        self._calibrators[exit_index, is_greedy].observe(confidence, accepted)

    def observe_step(self, num_rows: int, num_committed: int, seconds: float) -> None:
        """Learn what a decode step brought; switches drafting off or back on.

        Args:
            num_rows: Decoding rows that may draft.
            num_committed: Tokens they committed.
            seconds: Modelled cost of the step, heads included.
        """
        if self._paused_for > 0:
            self._paused_for -= 1
            return
        self._gained = (
            self._gained * _WINDOW + num_committed * self._cost.plain(num_rows) / num_rows
        )
        self._spent = self._spent * _WINDOW + seconds
        self._steps += 1
        if self._steps < _MIN_STEPS:
            return
        if self.speedup < 1.0:
            self._paused_for = self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._gained = self._spent = 0.0
            self._steps = 0
        else:
            self._pause = _FIRST_PAUSE

    def segment_cost(self, segment: int, num_tokens: int) -> float:
        """Modelled seconds of a segment."""
        return self._cost.segment(segment, num_tokens)

    def head_cost(self, exit_index: int, num_tokens: int) -> float:
        """Modelled seconds of evaluating a head."""
        return self._cost.head(exit_index, num_tokens)

    def logits_cost(self, num_tokens: int) -> float:
        """Modelled seconds of the final logits."""
        return self._cost.logits(num_tokens)
