"""Drafts that heads offer, made of what they expect after every token that has just arrived."""

from collections.abc import Sequence
from typing import NamedTuple

from engine.worker.chances import Chance, Chances
from engine.worker.exit_evaluator import Arrival, Opinion
from engine.worker.exit_policy import DraftGain
from engine.worker.pending import append, cut
from engine.worker.row import Draft, Guess, Row
from engine.worker.step_estimate import StepEstimate
from engine.worker.thresholds import Thresholds


class Offer(NamedTuple):
    """A draft that a head offers to a row, and what taking it would bring."""

    row: Row
    opinion: Opinion
    token_id: int
    chance: Chance
    gain: DraftGain

    def take(self, exit_index: int, estimate: StepEstimate) -> None:
        """Make the draft, replacing the row's drafts from that place on."""
        row, opinion = self.row, self.opinion
        cut(row, opinion.num_drafts, estimate)
        survival = row.survival * self.chance.probability
        draft = Draft(self.token_id, exit_index, opinion.confidence, survival)
        append(row, [draft], estimate)


class HeadOffers:
    """Makes the offers, and notes every guess with its row."""

    def __init__(self, chances: Chances, thresholds: Thresholds) -> None:
        self._chances = chances
        self._thresholds = thresholds

    def make(
        self, exit_index: int, arrivals: Sequence[Arrival], views: Sequence[list[Opinion]]
    ) -> tuple[list[Offer], list[Offer]]:
        """Return the drafts that the head offers to rows with a fixed threshold and to other rows.

        With a threshold, an offer is made where the head is sure enough; other rows get the best.
        """
        fixed: list[Offer] = []
        free: list[Offer] = []
        for arrival, view in zip(arrivals, views, strict=True):
            offers = self._of_row(exit_index, arrival.row, view)
            threshold = self._thresholds.of(arrival.row)
            if threshold is None:
                free += [max(offers, key=lambda offer: offer.gain.tokens)] if offers else []
            else:
                newest = [offer for offer in offers if not offer.gain.num_replaced]
                fixed += [offer for offer in newest if offer.opinion.confidence > threshold]
        return fixed, free

    def _of_row(self, exit_index: int, row: Row, view: Sequence[Opinion]) -> list[Offer]:
        """Return an offer for every place where the head expects a token that is not drafted."""
        offers = []
        ids = row.draft_ids
        survivals = [1.0, *(draft.survival for draft in row.drafts)]
        for opinion in view:
            count = opinion.num_drafts
            if opinion.token_id is None:
                continue
            is_greedy = row.state.is_greedy
            best, second = opinion.confidence, opinion.second_confidence
            chance = self._chances.of_head(exit_index, best, count, is_greedy=is_greedy)
            path = tuple(ids[:count])
            row.guesses.append(Guess(path, opinion.token_id, chance))
            if opinion.second_id is not None:
                of_second = self._chances.of_second(best, second, is_greedy=is_greedy)
                row.guesses.append(Guess(path, opinion.second_id, of_second))
            is_new = count == len(ids) or ids[count] != opinion.token_id
            if is_new and count < row.plan.max_draft_tokens and not _ends(row, count):
                lost = survivals[count + 1 :]
                tokens = survivals[count] * chance.probability - sum(lost)
                gain = DraftGain(tokens, num_replaced=len(lost))
                offers.append(Offer(row, opinion, opinion.token_id, chance, gain))
        return offers


def _ends(row: Row, num_drafts: int) -> bool:
    """Whether nothing can follow the first `num_drafts`: the last of them ends the sequence."""
    return num_drafts > 0 and row.drafts[num_drafts - 1].token_id in row.state.start.stop_token_ids
