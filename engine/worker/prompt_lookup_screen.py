"""Screens look-up drafts that have just arrived at an exit by its head's opinion.

Drafts that the head makes unlikely end there, before the deep layers are spent on them.
"""

from collections.abc import Sequence
from math import isnan

from engine.worker.chances import Chances
from engine.worker.exit_evaluator import Arrival, Opinion
from engine.worker.exit_policy import ExitPolicy
from engine.worker.pending import append
from engine.worker.row import Draft, Guess, Row
from engine.worker.step_estimate import StepEstimate
from engine.worker.thresholds import Thresholds


class PromptLookupScreen:
    """Screens at the first exit only; drafts that pass are not screened again."""

    def __init__(self, policy: ExitPolicy, chances: Chances, thresholds: Thresholds) -> None:
        self._policy = policy
        self._chances = chances
        self._thresholds = thresholds

    def screen(
        self,
        arrivals: Sequence[Arrival],
        views: Sequence[list[Opinion]],
        estimate: StepEstimate,
    ) -> None:
        """Drop look-up drafts that the head finds unlikely, and the opinions on them."""
        tails = [self._judged(a.row, view) for a, view in zip(arrivals, views, strict=True)]
        for arrival, tail in zip(arrivals, tails, strict=True):
            estimate.remove(arrival.row.drafts[len(arrival.row.drafts) - len(tail) :])
        free = [i for i, a in enumerate(arrivals) if self._thresholds.of(a.row) is None]
        runs = [[draft.survival for draft in tails[i]] for i in free]
        num_sure = self._thresholds.num_sure
        counts = [num_sure(a.row, tail) for a, tail in zip(arrivals, tails, strict=True)]
        for i, count in zip(free, self._policy.keep(0, runs, estimate), strict=True):
            counts[i] = count
        for arrival, view, tail, count in zip(arrivals, views, tails, counts, strict=True):
            row, start = arrival.row, view[0].num_drafts
            row.cut(start + count)
            del row.drafts[start:]
            append(row, tail[:count], estimate)
            del view[count + 1 :]

    def _judged(self, row: Row, view: Sequence[Opinion]) -> list[Draft]:
        """Return the row's look-up drafts after the first evaluated token, with the probabilities
        that the head's opinion gives them.
        """
        ids, tail = row.draft_ids, []
        survival = row.drafts[view[0].num_drafts - 1].survival if view[0].num_drafts else 1.0
        for opinion in view[:-1]:
            draft = row.drafts[opinion.num_drafts]
            chance = draft.chance
            if chance is not None and not isnan(opinion.share):
                chance = self._chances.screened(
                    chance,
                    opinion.share,
                    is_best=opinion.token_id == draft.token_id,
                    is_outside=opinion.is_outside,
                )
                path = tuple(ids[: opinion.num_drafts])
                row.guesses.append(Guess(path, draft.token_id, chance))
            confidence = draft.confidence if chance is None else chance.probability
            survival *= confidence
            tail.append(Draft(draft.token_id, None, confidence, survival))
        return tail
