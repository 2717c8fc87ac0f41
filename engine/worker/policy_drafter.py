"""Where drafts come from: a look-up in the row's own text, and exit heads. The policy picks.

Look-up drafts enter segment 0 together with the token they follow. At the first exit the head has a
say in them: those it makes unlikely end there, and where it expects something better, that takes
their place.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan
from typing import Protocol

from torch import Tensor

from engine.model.noise import gumbel_of, noise_key
from engine.plan import RowResult
from engine.worker.alternates import Alternates
from engine.worker.chances import LOOKUP, Chance, Chances
from engine.worker.device_queue import DeviceQueue
from engine.worker.exit_look import Arrival, Opinion, first_unseen
from engine.worker.exit_policy import Candidate, ExitPolicy, StepEstimate
from engine.worker.row import Draft, Guess, Row
from engine.worker.sample_point import SamplePoint

_PASSES = 8  # plain passes of which one tells what they take: on a GPU the host would feel more
_LEAST_SURVIVAL = 0.05  # of a look-up draft; what follows is not looked at


class Look(Protocol):
    """What exits expect: an `ExitLook`, or what was recorded of one (training)."""

    def opinions(
        self, exit_index: int, arrivals: Sequence[Arrival], hidden: Tensor
    ) -> list[list[Opinion]]:
        """See `ExitLook.opinions`."""


class PolicyDrafter:
    """Implements `Drafter`: look-up and exit heads at work, as the policy wants it."""

    def __init__(
        self,
        policy: ExitPolicy,
        chances: Chances,
        *,
        exit_layers: Sequence[int] = (),
        exit_look: Look | None = None,
        has_lookup: bool = True,
        threshold: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        is_queued: bool = False,
    ) -> None:
        """Args:
        exit_look: The heads at `exit_layers`; None: there are none.
        threshold: Fixed threshold of rows that ask for none; None: the policy decides.
        clock: In seconds: what a look takes.
        is_queued: Calls return before the device has computed.
        """
        self.exit_layers = list(exit_layers)
        self._policy = policy
        self._chances = chances
        self._alternates = Alternates(policy, chances)
        self._exit_look = exit_look
        self._has_lookup = has_lookup
        self._threshold = threshold
        self._clock = clock
        self._queue = DeviceQueue(clock) if is_queued else None
        self._num_passes = 0
        self._is_plain = False  # the policy found nothing to do in this step
        self._is_untold = False  # what its parts took
        self._began = 0.0

    def begin(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.begin`."""
        self._is_plain = self._is_untold = False
        self._began = self._clock()
        if self._queue is not None:
            self._queue.begin()
        self._policy.begin(estimate, may_control=all(map(self._is_free, rows)))
        if self._policy.is_drafting:
            return any(row.is_draftable for row in rows)
        return any(self._fixed(row) is not None and row.is_draftable for row in rows)

    def look_up(self, rows: Sequence[Row], estimate: StepEstimate) -> None:
        """See `Drafter.look_up`."""
        if not self._has_lookup:
            return
        found = [
            (row, self._continue(row))
            for row in rows
            if row.num_waiting
            and row.num_room
            and row.state.start.lookup
            and (self._policy.is_drafting or self._fixed(row) is not None)
        ]
        free = [(row, drafts) for row, drafts in found if self._fixed(row) is None and drafts]
        for row, drafts in found:
            if self._fixed(row) is not None:
                _append(row, drafts[: _num_sure(drafts, self._fixed(row))], estimate)
        num_waiting = sum(row.num_waiting for row in rows)
        runs = [[draft.survival for draft in drafts] for _, drafts in free]
        counts = self._policy.extend(runs, num_waiting, estimate)
        for (row, drafts), count in zip(free, counts, strict=True):
            _append(row, drafts[:count], estimate)

    def will_look(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.will_look`."""
        self._is_plain = not self._wants_look([row for row in rows if row.is_draftable], estimate)
        return not self._is_plain

    def wants_states(self, rows: Sequence[Row]) -> bool:
        """See `Drafter.wants_states`."""
        if self._exit_look is None:
            return False
        return self._policy.may_look_next or any(self._fixed(row) is not None for row in rows)

    def look(
        self,
        exit_index: int,
        arrivals: Sequence[Arrival],
        hidden: Tensor,
        estimate: StepEstimate,
    ) -> None:
        """See `Drafter.look`."""
        if self._exit_look is None:
            return
        able = [a for a in arrivals if a.row.is_draftable and a.row.estimates]
        lookers, offered = self._lookers(exit_index, able, estimate)
        if not lookers:
            return
        started = self._clock()
        views = self._exit_look.opinions(exit_index, lookers, hidden)
        num_tokens = sum(map(len, views))
        estimate.seconds += self._policy.head_cost(exit_index, num_tokens)
        if exit_index == 0 and any(len(view) > 1 for view in views):  # else nothing was looked up
            self._screen(lookers, views, estimate)
        fixed, free = self._offers(exit_index, lookers, views)
        for offer in fixed:
            _take(offer, exit_index, estimate)
        candidates = [offer.candidate for offer in free]
        chosen = self._policy.select(exit_index, candidates, estimate, len(fixed))
        self._policy.observe_look(exit_index, offered, [candidates[i] for i in chosen], estimate)
        for index in chosen:
            _take(free[index], exit_index, estimate)
        seen = zip((arrival.row for arrival in lookers), views, strict=True)
        left = [(row, view) for row, view in seen if self._fixed(row) is None]
        self._alternates.add(exit_index, left, estimate)
        seconds = self._clock() - started if self._queue is None else self._queue.wait()
        if seconds is not None:
            self._policy.observe_head(exit_index, num_tokens, seconds)

    def note_segment(
        self, segment: int, num_tokens: int, seconds: float, estimate: StepEstimate
    ) -> None:
        """See `Drafter.note_segment`."""
        cost = self._policy.segment_cost(segment, num_tokens)
        estimate.seconds += cost
        if self._queue is None:
            self._policy.observe_segment(segment, num_tokens, seconds)
        else:
            self._queue.add(num_tokens, cost)

    def note_pass(self, num_tokens: int, estimate: StepEstimate) -> None:
        """See `Drafter.note_pass`."""
        self._num_passes += 1
        self._is_untold = self._queue is not None and self._num_passes % _PASSES != 0
        if not self._is_untold:
            for segment in range(len(self.exit_layers) + 1):
                cost = self._policy.segment_cost(segment, num_tokens)
                estimate.seconds += cost
                if self._queue is not None:
                    self._queue.add(num_tokens, cost)

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """Calibrate on verified guesses; judge whether drafting pays on steps that only decode."""
        for row, result in zip(rows, results, strict=True):
            if row.guesses:
                self._learn_row(row, result.token_ids)
        pending = sum(row.num_pending for row in rows)
        if not self._is_untold:
            seconds = estimate.last_seconds if self._queue is None else self._queue.wait()
            if seconds is not None:
                self._policy.observe_logits(pending, seconds)
        took_s = self._clock() - self._began
        if self._is_plain or not self._policy.is_drafting:
            if any(map(self._is_free, rows)):  # pauses pass where the policy would have had a say
                is_measure = not self._policy.is_drafting and all(
                    row.plan.only_decodes and self._fixed(row) is None for row in rows
                )
                self._policy.pass_by(len(rows), took_s if is_measure else None)
        elif all(map(self._is_free, rows)):
            self._policy.observe_step(
                len(rows),
                sum(len(result.token_ids) for result in results),
                estimate.expected_tokens,
                estimate.seconds + self._policy.logits_cost(pending),
                took_s,
            )

    def _wants_look(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.will_look`, of rows that may draft."""
        if self._exit_look is None:
            return False
        if any(self._fixed(row) is not None for row in rows):
            return True
        # Without states to read there is nothing to see yet: they are kept from now on.
        return self._policy.will_look(len(rows), estimate) and any(row.estimates for row in rows)

    def _fixed(self, row: Row) -> float | None:
        """The threshold that decides for a row instead of the policy."""
        asked = row.state.start.threshold
        return self._threshold if asked is None else asked

    def _is_free(self, row: Row) -> bool:
        """Whether a row may draft, as the policy wants it."""
        return row.is_draftable and self._fixed(row) is None

    def _continue(self, row: Row) -> list[Draft]:
        """Drafts that the row's text suggests, as long as there is any hope for them."""
        start, ids = row.state.start, row.draft_ids
        position = len(row.state.token_ids) + len(ids)
        noise = None
        if not row.state.is_greedy:
            noise = partial(gumbel_of, noise_key(start.seed, position))
        found = row.state.lookup.find(ids, row.num_room, noise)
        if found is None:
            return []
        drafts: list[Draft] = []
        survival = row.survival
        for offset, token_id in enumerate(found.token_ids):
            path = (*ids, *found.token_ids[:offset])
            if not SamplePoint(row.state, path).allows(token_id):
                break
            luck = None
            if not row.state.is_greedy:
                luck = gumbel_of(noise_key(start.seed, position + offset), token_id)
            chance = self._chances.looked_up(found, offset, row.state.lookup.recent, luck)
            survival *= chance.probability
            row.guesses.append(Guess(path, token_id, chance))
            drafts.append(Draft(token_id, None, chance.probability, survival, chance))
            if survival < _LEAST_SURVIVAL or token_id in start.stop_token_ids:
                break
        return drafts

    def _lookers(
        self, exit_index: int, arrivals: Sequence[Arrival], estimate: StepEstimate
    ) -> tuple[list[Arrival], float]:
        """Rows that the exit looks at, and what those left to the policy offer in sum."""
        fixed = [a for a in arrivals if self._fixed(a.row) is not None]
        free = [a for a in arrivals if self._fixed(a.row) is None]
        chances = [(_hope(a), len(a.row.drafts) + 1 - first_unseen(a)) for a in free]
        places = self._policy.rows_to_look_at(exit_index, chances, estimate)
        return [*fixed, *(free[i] for i in places)], sum(chances[i][0] for i in places)

    def _screen(
        self,
        arrivals: Sequence[Arrival],
        views: Sequence[list[Opinion]],
        estimate: StepEstimate,
    ) -> None:
        """Give up look-up drafts that the head finds unlikely, and their opinions with them."""
        tails = [self._judge(a.row, view) for a, view in zip(arrivals, views, strict=True)]
        for arrival, tail in zip(arrivals, tails, strict=True):
            lost = arrival.row.drafts[len(arrival.row.drafts) - len(tail) :]
            estimate.num_tokens -= len(lost)
            estimate.expected_tokens -= sum(draft.survival for draft in lost)
        free = [i for i, arrival in enumerate(arrivals) if self._fixed(arrival.row) is None]
        runs = [[draft.survival for draft in tails[i]] for i in free]
        counts = [
            _num_sure(tail, self._fixed(a.row)) for a, tail in zip(arrivals, tails, strict=True)
        ]
        for i, count in zip(free, self._policy.keep(0, runs, estimate), strict=True):
            counts[i] = count
        for arrival, view, tail, count in zip(arrivals, views, tails, counts, strict=True):
            row, start = arrival.row, view[0].num_drafts
            row.cut(start + count)
            del row.drafts[start:]
            _append(row, tail[:count], estimate)
            del view[count + 1 :]

    def _judge(self, row: Row, view: Sequence[Opinion]) -> list[Draft]:
        """The row's look-up drafts behind the first token looked at, with their chances as the head
        sees them.
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

    def _offers(
        self, exit_index: int, arrivals: Sequence[Arrival], views: Sequence[list[Opinion]]
    ) -> tuple[list["_Offer"], list["_Offer"]]:
        """What the head would draft: for rows with a fixed threshold if it is sure enough, and the
        best for the others.
        """
        fixed: list[_Offer] = []
        free: list[_Offer] = []
        for arrival, view in zip(arrivals, views, strict=True):
            offers = self._row_offers(exit_index, arrival.row, view)
            threshold = self._fixed(arrival.row)
            if threshold is None:
                free += [max(offers, key=lambda offer: offer.candidate.gain)] if offers else []
            else:
                newest = [offer for offer in offers if not offer.candidate.num_replaced]
                fixed += [offer for offer in newest if offer.opinion.confidence > threshold]
        return fixed, free

    def _row_offers(self, exit_index: int, row: Row, view: Sequence[Opinion]) -> list["_Offer"]:
        """One for every place where the head expects something that is not drafted."""
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
                gain = survivals[count] * chance.probability - sum(lost)
                candidate = Candidate(gain, num_replaced=len(lost))
                offers.append(_Offer(row, opinion, opinion.token_id, chance, candidate))
        return offers

    def _learn_row(self, row: Row, token_ids: Sequence[int]) -> None:
        """A guess has a verdict if everything before it turned out right."""
        for guess in row.guesses:
            place = len(guess.path)
            if place < len(token_ids) and guess.path == tuple(token_ids[:place]):
                accepted = token_ids[place] == guess.token_id
                self._chances.learn(guess.chance, accepted=accepted)
                if guess.chance.kind == LOOKUP:
                    row.state.lookup.judge(was_right=accepted)


@dataclass(frozen=True, slots=True)
class _Offer:
    """A draft that a head offers to a row."""

    row: Row
    opinion: Opinion
    token_id: int
    chance: Chance
    candidate: Candidate


def _num_sure(drafts: Sequence[Draft], threshold: float | None) -> int:
    """How many of the first drafts are surer than a fixed threshold; all without one."""
    if threshold is None:
        return len(drafts)
    return next((i for i, d in enumerate(drafts) if d.confidence <= threshold), len(drafts))


def _ends(row: Row, num_drafts: int) -> bool:
    """Whether nothing can follow so many drafts: the last of them ends the sequence."""
    return num_drafts > 0 and row.drafts[num_drafts - 1].token_id in row.state.start.stop_token_ids


def _hope(arrival: Arrival) -> float:
    """How much of a look's usual worth a row offers: that its drafts stand, or that those that no
    head has seen do not, and a head knows better.
    """
    row, first = arrival.row, first_unseen(arrival)
    before = row.drafts[first - 1].survival if first else 1.0
    after = row.drafts[first].survival if first < len(row.drafts) else before
    return row.survival + before - after


def _take(offer: _Offer, exit_index: int, estimate: StepEstimate) -> None:
    """Make the draft, in the place of whatever was drafted there."""
    row = offer.row
    _cut(row, offer.opinion.num_drafts, estimate)
    survival = row.survival * offer.chance.probability
    draft = Draft(offer.token_id, exit_index, offer.opinion.confidence, survival)
    _append(row, [draft], estimate)


def _append(row: Row, drafts: Sequence[Draft], estimate: StepEstimate) -> None:
    row.drafts += drafts
    estimate.num_tokens += len(drafts)
    estimate.expected_tokens += sum(draft.survival for draft in drafts)


def _cut(row: Row, num_drafts: int, estimate: StepEstimate) -> None:
    """Forget all drafts but the oldest so many."""
    lost = row.drafts[num_drafts:]
    row.cut(num_drafts)
    estimate.num_tokens -= len(lost)
    estimate.expected_tokens -= sum(draft.survival for draft in lost)
