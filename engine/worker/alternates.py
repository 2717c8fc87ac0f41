"""Gives the places of drafts second candidates that heads offer, as far as they pay.

Decides nothing about the drafts themselves.
"""

from collections.abc import Sequence

from engine.worker.chances import Chances
from engine.worker.exit_evaluator import Opinion
from engine.worker.exit_policy import ExitPolicy
from engine.worker.row import Alternate, Row
from engine.worker.step_estimate import StepEstimate


class Alternates:
    """Adds alternates to rows for which the policy decides."""

    def __init__(self, policy: ExitPolicy, chances: Chances) -> None:
        self._policy = policy
        self._chances = chances

    def add(
        self,
        exit_index: int,
        views: Sequence[tuple[Row, Sequence[Opinion]]],
        estimate: StepEstimate,
    ) -> None:
        """Add alternates where they pay.

        Args:
            views: Rows whose drafts have been made, with the exit's opinions on their tokens.
            estimate: Updated with what the alternates promise.
        """
        offers = [
            (row, alternate)
            for row, view in views
            for opinion in view
            if (alternate := self._offer(exit_index, row, opinion)) is not None
        ]
        offers.sort(key=lambda offer: offer[1].survival, reverse=True)
        gains = [alternate.survival for _, alternate in offers[: estimate.num_spare]]
        num_waiting = sum(row.num_waiting for row, _ in views)
        count = self._policy.num_alternates(exit_index, gains, num_waiting, estimate)
        for row, alternate in offers[:count]:
            row.alternates.append(alternate._replace(spare=estimate.take_spare()))
            estimate.add([alternate])

    def _offer(self, exit_index: int, row: Row, opinion: Opinion) -> Alternate | None:
        """Return the head's likeliest token other than the draft at the same place, if any.

        Its spare slot is assigned later.
        """
        place, is_greedy = opinion.num_drafts, row.state.is_greedy
        if place >= len(row.drafts) or any(a.place == place for a in row.alternates):
            return None
        best, second = opinion.confidence, opinion.second_confidence
        if row.drafts[place].token_id == opinion.token_id:
            token_id, confidence = opinion.second_id, second
            chance = self._chances.of_second(best, second, is_greedy=is_greedy)
        else:
            token_id, confidence = opinion.token_id, best
            chance = self._chances.of_head(exit_index, best, place, is_greedy=is_greedy)
        if token_id is None:
            return None
        survival = chance.probability * (row.drafts[place - 1].survival if place else 1.0)
        return Alternate(token_id, place, exit_index, confidence, survival, spare=-1)
