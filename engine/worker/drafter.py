"""The decode step's view of what makes drafts: `PolicyDrafter` in a server, scripted drafters in
tests and benchmarks.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from engine.plan import RowResult
from engine.worker.exit_evaluator import Arrival
from engine.worker.row import Row
from engine.worker.step_estimate import StepEstimate


class Drafter(Protocol):
    """Makes drafts while a step goes down the layers."""

    exit_layers: list[int]

    def begin(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """Begin a step. Return whether any row may get a draft in it.

        Args:
            estimate: The step without drafts.
        """

    def look_up(self, rows: Sequence[Row], estimate: StepEstimate) -> None:
        """Append look-up drafts, which need no layer, to rows with tokens about to enter segment 0.

        Args:
            estimate: Updated with what the drafts promise.
        """

    def will_evaluate_exits(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """Whether any exit is to be evaluated for any of these rows, none of which has a draft.

        If not, the step need not stop at exits.
        """

    def evaluate_exit(
        self,
        exit_index: int,
        arrivals: Sequence[Arrival],
        hidden: Tensor,
        estimate: StepEstimate,
    ) -> None:
        """Evaluate an exit for rows whose newest token has arrived there.

        Some rows get a draft; some lose the newest of the drafts that have just arrived.

        Args:
            hidden: [T, E], hidden states of the call that brought the rows here.
            estimate: Updated with what this costs and promises.
        """

    def note_segment(
        self, segment: int, num_tokens: int, seconds: float, estimate: StepEstimate
    ) -> None:
        """Note that a segment has run.

        Args:
            seconds: What the call took.
            estimate: Updated with what that costs.
        """

    def note_pass(self, num_tokens: int, estimate: StepEstimate, *, is_ahead: bool) -> None:
        """Note that all segments have run as one call, in a step without drafts and evaluations.

        Args:
            estimate: Updated with what that costs.
            is_ahead: Whether the call was launched in the step before.
        """

    def may_draft_next(self, rows: Sequence[Row]) -> bool:
        """Whether these rows may get drafts in the step after this one, which has none."""

    def catch_up(self) -> None:
        """Do deferred work now that the last layers are launched, so that no GPU waits for it."""

    def wants_states(self, rows: Sequence[Row]) -> bool:
        """Whether the next step may read the last hidden states of this one's newest tokens."""

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """Learn from how a step's drafts fared."""
