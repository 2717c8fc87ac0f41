"""The decode step's view of whoever makes drafts: `PolicyDrafter` where something is served; tests
and benchmarks script their own.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from engine.plan import RowResult
from engine.worker.exit_look import Arrival
from engine.worker.row import Row
from engine.worker.step_estimate import StepEstimate


class Drafter(Protocol):
    """Makes drafts while a step goes down the layers."""

    exit_layers: list[int]

    def begin(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """A step begins. Returns whether any row may get a draft in it.

        Args:
            estimate: As it is without drafts.
        """

    def look_up(self, rows: Sequence[Row], estimate: StepEstimate) -> None:
        """Append drafts that cost no layer to rows with tokens that are about to enter segment 0.

        Args:
            estimate: Updated with what they promise.
        """

    def will_look(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """Whether any exit is to look at any of these rows, none of which has a draft; else the
        step need not stop at exits.
        """

    def look(
        self,
        exit_index: int,
        arrivals: Sequence[Arrival],
        hidden: Tensor,
        estimate: StepEstimate,
    ) -> None:
        """Look at rows whose newest token stands at an exit. Some get a draft; some lose the newest
        of those drafts that have just arrived.

        Args:
            hidden: [T, E], of the call that brought them.
            estimate: Updated with what this costs and promises.
        """

    def note_segment(
        self, segment: int, num_tokens: int, seconds: float, estimate: StepEstimate
    ) -> None:
        """A segment has run for so many tokens, and the call took so long.

        Args:
            estimate: Updated with what that costs.
        """

    def note_pass(self, num_tokens: int, estimate: StepEstimate, *, is_ahead: bool) -> None:
        """All segments have run as one, in a step without drafts and looks.

        Args:
            estimate: Updated with what that costs.
            is_ahead: They were launched in the step before.
        """

    def may_draft_next(self, rows: Sequence[Row]) -> bool:
        """Whether these rows may get drafts in the step after this one, which has none."""

    def catch_up(self) -> None:
        """The step's last layers are on their way. What was put off is done now: a GPU that
        computes does not wait for it.
        """

    def wants_states(self, rows: Sequence[Row]) -> bool:
        """Whether the last states of this step's newest tokens may be read in the next one."""

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """See how a step's drafts fared."""
