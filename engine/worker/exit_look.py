"""An exit's view of rows that have arrived: what its head expects behind every token, and how sure
it is.

Follows each row's run of tokens with the head's estimate of the last hidden state, which the next
token's estimate reads. Decides nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

import torch
from torch import Tensor

from engine.model.exit_head import ExitHeads, Head
from engine.model.noise import DRAFT_WEIGHT, gumbel, noise_key
from engine.worker.row import Row
from engine.worker.sample_point import ReducedVocabulary, SamplePoint
from engine.worker.sampler import Sampler
from engine.worker.upload import upload

_MEAN_GUMBEL = 0.5772  # of the noise a token outside the reduced vocabulary would have had


@dataclass(frozen=True, slots=True)
class Arrival:
    """A row whose newest token has just arrived at an exit."""

    row: Row
    places: list[int]  # of its pending tokens in the call; the newest is the last


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a head expects behind one pending token.

    Confidence is the winner's softmax share of the scores under the row's own noise, which at
    temperature 0 is the head's top-1 probability; it only steers the policy.
    """

    num_drafts: int  # the token's place: drafts up to it
    token_id: int | None  # None: something outside the reduced vocabulary, or nothing sensible
    confidence: float
    share: float = nan  # logarithm of the same share of the draft that follows, if one does
    is_outside: bool = False  # that draft is outside the reduced vocabulary


class ExitLook:
    """Evaluates a model's exit heads."""

    def __init__(self, heads: ExitHeads, sampler: Sampler) -> None:
        self._heads = heads
        self._sampler = sampler
        self._reduced = ReducedVocabulary(heads.token_ids, heads.columns)
        self._token_ids = heads.token_ids.tolist()
        self._columns = {token_id: column for column, token_id in enumerate(self._token_ids)}

    def opinions(
        self, exit_index: int, arrivals: Sequence[Arrival], hidden: Tensor
    ) -> list[list[Opinion]]:
        """Per arrival one opinion for every token whose successor has not been estimated yet, and
        for the newest in any case. Leaves the estimates with the rows.

        Args:
            hidden: [T, E], of the call that brought them.
        """
        head = self._heads.heads[exit_index]
        starts = [first_unseen(arrival) for arrival in arrivals]
        logits, other = _follow(head, arrivals, starts, hidden)
        points = [
            SamplePoint(arrival.row.state, arrival.row.draft_ids[:count])
            for arrival, start in zip(arrivals, starts, strict=True)
            for count in _counts(arrival, start)
        ]
        scores = self._scores(logits, other, points)
        return self._read(scores, arrivals, starts)

    def _scores(self, logits: Tensor, other: Tensor, points: Sequence[SamplePoint]) -> Tensor:
        """Logarithms of shares [T, V' + 1], "other" last, under the rows' own noise."""
        scores = self._sampler.scores(logits, points, self._reduced)
        if not all(point.state.is_greedy for point in points):
            scores, other = self._perturb(scores, other, points)
        return torch.cat((scores, other), dim=1).log_softmax(-1)

    def _read(
        self, scores: Tensor, arrivals: Sequence[Arrival], starts: Sequence[int]
    ) -> list[list[Opinion]]:
        size = len(self._token_ids)
        views: list[list[Opinion]] = []
        followers: list[int] = []  # column of the draft that follows each token
        for arrival, start in zip(arrivals, starts, strict=True):
            ids = arrival.row.draft_ids
            followers += [
                self._columns.get(ids[count], size) if count < len(ids) else 0
                for count in _counts(arrival, start)
            ]
        best = scores.max(-1)
        index = upload(followers, torch.int64, scores.device)[:, None]
        facts = (best.indices, best.values.exp(), scores.gather(1, index)[:, 0])
        # One read, because a GPU is waited for each time; doubles hold all three as they are.
        winners, confidences, shares = torch.stack([fact.double() for fact in facts]).tolist()
        columns = [int(column) for column in winners]
        place = 0
        for arrival, start in zip(arrivals, starts, strict=True):
            view = []
            for count in _counts(arrival, start):
                is_known = columns[place] < size and not isnan(confidences[place])
                view.append(
                    Opinion(
                        num_drafts=count,
                        token_id=self._token_ids[columns[place]] if is_known else None,
                        confidence=confidences[place],
                        share=shares[place] if count < len(arrival.row.drafts) else nan,
                        is_outside=followers[place] == size,
                    )
                )
                place += 1
            views.append(view)
        return views

    def _perturb(
        self, scores: Tensor, other: Tensor, points: Sequence[SamplePoint]
    ) -> tuple[Tensor, Tensor]:
        """Temperature and a share of the target's own Gumbel noise; rows at temperature 0 stay as
        they are.
        """
        temperatures = [point.state.start.temperature for point in points]
        device = scores.device
        temperature = upload(temperatures, torch.float32, device)[:, None]
        keys = [noise_key(point.state.start.seed, point.position) for point in points]
        noise = gumbel(upload(keys, torch.int64, device), self._reduced.token_ids)
        is_sampled = temperature > 0
        divisor = torch.where(is_sampled, temperature, 1.0)
        weight = DRAFT_WEIGHT * is_sampled
        return scores / divisor + noise * weight, other / divisor + _MEAN_GUMBEL * weight


def first_unseen(arrival: Arrival) -> int:
    """Place (in drafts) of the first pending token that a look has to begin with: behind it no
    estimate is known yet, or it is the newest.
    """
    row = arrival.row
    return min(len(row.estimates) - 1, len(row.drafts))


def _counts(arrival: Arrival, start: int) -> range:
    return range(start, len(arrival.row.drafts) + 1)


def _follow(
    head: Head, arrivals: Sequence[Arrival], starts: Sequence[int], hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits [T, V'] and [T, 1] of all tokens to look at, row by row; the rows keep the states."""
    runs = [
        arrival.places[start - len(arrival.row.drafts) - 1 :]
        for arrival, start in zip(arrivals, starts, strict=True)
    ]
    estimates = [arrival.row.estimates for arrival in arrivals]
    for known, start in zip(estimates, starts, strict=True):
        del known[start + 1 :]
    if all(len(run) == 1 for run in runs):
        places = upload([place for (place,) in runs], torch.int64, hidden.device)
        states, logits, other = head(hidden[places], torch.stack([e[-1] for e in estimates]))
        for known, state in zip(estimates, states, strict=True):
            known.append(state)
        return logits, other
    for depth in range(max(map(len, runs))):
        going = [i for i, run in enumerate(runs) if depth < len(run)]
        places = upload([runs[i][depth] for i in going], torch.int64, hidden.device)
        states = head.estimate(hidden[places], torch.stack([estimates[i][-1] for i in going]))
        for i, state in zip(going, states, strict=True):
            estimates[i].append(state)
    return head.logits(
        torch.stack(
            [
                state
                for known, start in zip(estimates, starts, strict=True)
                for state in known[start + 1 :]
            ]
        )
    )
