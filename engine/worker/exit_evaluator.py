"""Evaluates exit heads on the rows that have arrived at an exit: the token that the head expects
after every pending token, and how sure it is.

A head also estimates the last hidden state of each token. The estimate for a row's next token reads
that of the token before, so each row's run of tokens is followed in order. Decides nothing.
"""

from collections.abc import Sequence
from itertools import islice
from math import exp, isnan, nan
from typing import NamedTuple

from torch import Tensor

from engine.model.exit_head import ExitHeads, Head
from engine.model.ops.heads import stacked
from engine.worker.row import Row
from engine.worker.row_gather import take_rows
from engine.worker.sample_point import ReducedVocabulary, SamplePoint
from engine.worker.sampler import Sampler


class Arrival(NamedTuple):
    """A row whose newest token has just arrived at an exit."""

    row: Row
    places: list[int]  # indices of its pending tokens in the call, the newest last


class Opinion(NamedTuple):
    """What a head expects after one pending token.

    A confidence is a token's softmax share of the scores under the row's own noise, which at
    temperature 0 is the head's probability of the token. It only steers the policy.
    """

    num_drafts: int  # drafts up to and including the pending token
    token_id: int | None  # the best token; None: outside the reduced vocabulary, or NaN
    confidence: float
    share: float = nan  # logarithm of the confidence in the draft that follows, if one does
    is_outside: bool = False  # that draft is outside the reduced vocabulary
    second_id: int | None = None  # the second-best token, None as for `token_id`
    second_confidence: float = 0.0


class ExitEvaluator:
    """Evaluates a model's exit heads."""

    def __init__(self, heads: ExitHeads, sampler: Sampler) -> None:
        self._heads = heads
        self._sampler = sampler
        self._reduced = ReducedVocabulary(heads.token_ids, heads.columns)
        self._token_ids = heads.token_ids.tolist()
        self._size = len(self._token_ids)
        self._columns = {token_id: column for column, token_id in enumerate(self._token_ids)}

    def opinions(
        self, exit_index: int, arrivals: Sequence[Arrival], hidden: Tensor
    ) -> list[list[Opinion]]:
        """Return, per arrival, an opinion on every pending token from `first_unseen` on.

        The estimates of last hidden states are left with the rows.

        Args:
            hidden: [T, E], hidden states of the call that brought the rows here.
        """
        head = self._heads.heads[exit_index]
        starts = [first_unseen(arrival) for arrival in arrivals]
        logits, other = _follow(head, arrivals, starts, hidden)
        points: list[SamplePoint] = []
        followers: list[int] = []
        for arrival, start in zip(arrivals, starts, strict=True):
            ids = arrival.row.draft_ids
            points += [SamplePoint(arrival.row.state, ids[:n]) for n in range(start, len(ids) + 1)]
            followers += [self._columns.get(token_id, self._size) for token_id in ids[start:]]
            followers.append(0)  # nothing follows the newest token; any column will do
        scores = self._sampler.scores(logits, points, self._reduced)
        expected = self._sampler.expect(scores, other, points, self._reduced, followers)
        facts = zip(expected, followers, strict=True)
        return [
            [
                self._opinion(count, next(facts), count < len(arrival.row.drafts))
                for count in range(start, len(arrival.row.drafts) + 1)
            ]
            for arrival, start in zip(arrivals, starts, strict=True)
        ]

    def _opinion(
        self, num_drafts: int, facts: tuple[list[float], int], has_follower: bool
    ) -> Opinion:
        (best, best_share, share, second, second_share), follower = facts
        return Opinion(
            num_drafts,
            token_id=self._token_id(best, best_share),
            confidence=exp(best_share),
            share=share if has_follower else nan,
            is_outside=has_follower and follower == self._size,
            second_id=self._token_id(second, second_share),
            second_confidence=exp(second_share),
        )

    def _token_id(self, column: float, share: float) -> int | None:
        is_known = column < self._size and not isnan(share)
        return self._token_ids[int(column)] if is_known else None


def first_unseen(arrival: Arrival) -> int:
    """Return the index of the first pending token to evaluate: the oldest one whose own last hidden
    state has not been estimated yet, or else the newest.
    """
    row = arrival.row
    return min(len(row.estimates) - 1, len(row.drafts))


def _follow(
    head: Head, arrivals: Sequence[Arrival], starts: Sequence[int], hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the logits [T, V'] and [T, 1] of all tokens to evaluate; rows keep their estimates."""
    runs = [
        arrival.places[start - len(arrival.row.drafts) - 1 :]
        for arrival, start in zip(arrivals, starts, strict=True)
    ]
    places = [place for run in runs for place in run]
    previous = [a.row.estimates[start] for a, start in zip(arrivals, starts, strict=True)]
    arrived = take_rows(hidden, places)
    states, logits, other = head(arrived, stacked(previous), list(map(len, runs)))
    fresh = iter(states.unbind())
    for arrival, start, run in zip(arrivals, starts, runs, strict=True):
        arrival.row.estimates[start + 1 :] = islice(fresh, len(run))
    return logits, other
