"""Where drafts come from: a look-up in the row's own text, and exit heads. The policy picks.

Look-up drafts enter segment 0 together with the token they follow. At the first exit the head has a
say in them (`lookup_screen`), and where it expects something better (`head_offers`), that takes
their place.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from engine.plan import RowResult
from engine.worker.alternates import Alternates
from engine.worker.chances import LOOKUP, Chance, Chances
from engine.worker.drafting_switch import StepOutcome
from engine.worker.exit_look import Arrival, Opinion, first_unseen
from engine.worker.exit_policy import ExitPolicy
from engine.worker.head_offers import HeadOffers
from engine.worker.lookup_drafts import LookupDrafts
from engine.worker.lookup_screen import LookupScreen
from engine.worker.pending import append
from engine.worker.row import Draft, Row
from engine.worker.step_estimate import StepEstimate
from engine.worker.step_watch import StepWatch
from engine.worker.thresholds import Thresholds


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
        self._cost = policy.cost
        self._chances = chances
        self._thresholds = Thresholds(threshold)
        self._lookup = LookupDrafts(chances) if has_lookup else None
        self._screen = LookupScreen(policy, chances, self._thresholds)
        self._offers = HeadOffers(chances, self._thresholds)
        self._alternates = Alternates(policy, chances)
        self._exit_look = exit_look
        self._watch = StepWatch(clock, is_queued=is_queued)
        self._is_plain = False  # the policy found nothing to do in this step
        self._all_free = self._any_free = False  # rows that the policy decides about, in this step
        self._is_judged = False  # this step tells whether drafting pays
        self._verdicts: list[tuple[Chance, bool]] = []  # not learned from yet

    def begin(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.begin`."""
        self._is_plain = False
        self._watch.begin(is_idle=not estimate.is_ahead)
        free = [*map(self._thresholds.leaves, rows)]
        self._all_free, self._any_free = all(free), any(free)
        has_fixed = bool(self._fixed(rows))
        self._is_judged = self._all_free or (
            self._any_free and not has_fixed and all(row.plan.only_decodes for row in rows)
        )
        self._policy.begin(estimate, may_control=self._is_judged)
        return has_fixed or (self._any_free and self._policy.is_drafting)

    def look_up(self, rows: Sequence[Row], estimate: StepEstimate) -> None:
        """See `Drafter.look_up`."""
        if self._lookup is None:
            return
        fixed_for = self._thresholds.of
        free: list[tuple[Row, list[Draft]]] = []
        for row in rows:
            if not (row.num_waiting and row.num_room and row.state.start.early_exit.lookup):
                continue
            if fixed_for(row) is not None:
                drafts = self._lookup.behind(row)
                append(row, drafts[: self._thresholds.num_sure(row, drafts)], estimate)
            elif self._policy.is_drafting and (drafts := self._lookup.behind(row)):
                free.append((row, drafts))
        num_waiting = sum(row.num_waiting for row in rows)
        runs = [[draft.survival for draft in drafts] for _, drafts in free]
        counts = self._policy.extend(runs, num_waiting, estimate)
        lost_s = self._policy.lost_cost(estimate)
        for (row, drafts), count in zip(free, counts, strict=True):
            append(row, drafts[:count], estimate)
        if lost_s and any(row.drafts for row in rows):
            estimate.seconds += lost_s
            estimate.is_ahead = False

    def will_look(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.will_look`."""
        self._is_plain = not self._wants_look(self._able(rows), estimate)
        return not self._is_plain

    def catch_up(self) -> None:
        """See `Drafter.catch_up`: what the step before has taught."""
        for chance, accepted in self._verdicts:
            self._chances.learn(chance, accepted=accepted)
        self._verdicts.clear()
        self._cost.settle()

    def may_draft_next(self, rows: Sequence[Row]) -> bool:
        """See `Drafter.may_draft_next`."""
        able = self._able(rows)
        if not able:
            return False
        if self._fixed(rows):
            return True
        if self._policy.is_control and not self._watch.tells_of_plain_steps:
            return False  # one more is to come that does
        # What a look-up will say is not known; where it says nothing now, it seldom does next.
        return self._exit_look is not None and self._policy.will_look_next(len(able))

    def wants_states(self, rows: Sequence[Row]) -> bool:
        """See `Drafter.wants_states`."""
        if self._exit_look is None:
            return False
        return self._policy.may_look_next or bool(self._fixed(rows))

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
        started = self._watch.now()
        views = self._exit_look.opinions(exit_index, lookers, hidden)
        num_tokens = sum(map(len, views))
        estimate.seconds += self._cost.head(exit_index, num_tokens)
        if exit_index == 0 and any(len(view) > 1 for view in views):  # else nothing was looked up
            self._screen.screen(lookers, views, estimate)
        fixed, free = self._offers.make(exit_index, lookers, views)
        for offer in fixed:
            offer.take(exit_index, estimate)
        candidates = [offer.candidate for offer in free]
        chosen = self._policy.select(exit_index, candidates, estimate, len(fixed))
        self._policy.observe_look(exit_index, offered, [candidates[i] for i in chosen], estimate)
        for index in chosen:
            free[index].take(exit_index, estimate)
        seen = zip((arrival.row for arrival in lookers), views, strict=True)
        left = [(row, view) for row, view in seen if self._thresholds.of(row) is None]
        self._alternates.add(exit_index, left, estimate)
        seconds = self._watch.part(self._watch.now() - started)
        if seconds is not None:
            self._cost.observe(self._cost.heads[exit_index], num_tokens, seconds)

    def note_segment(
        self, segment: int, num_tokens: int, seconds: float, estimate: StepEstimate
    ) -> None:
        """See `Drafter.note_segment`."""
        cost = self._cost.segment(segment, num_tokens)
        estimate.seconds += cost
        self._watch.launch(num_tokens, cost)
        if not self._watch.is_queued:
            self._cost.observe(self._cost.segments[segment], num_tokens, seconds)

    def note_pass(self, num_tokens: int, estimate: StepEstimate, *, is_ahead: bool) -> None:
        """See `Drafter.note_pass`."""
        if self._watch.note_pass(is_ahead=is_ahead):
            for segment in range(len(self.exit_layers) + 1):
                cost = self._cost.segment(segment, num_tokens)
                estimate.seconds += cost
                self._watch.launch(num_tokens, cost)

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """Calibrate on verified guesses; judge whether drafting pays on steps that only decode."""
        for row, result in zip(rows, results, strict=True):
            if row.guesses:
                self._learn_row(row, result.token_ids)
        seconds = self._watch.part(estimate.last_seconds)
        num_tokens = sum(row.num_pending for row in rows)
        if seconds is not None and num_tokens:
            self._cost.observe(self._cost.last_logits, num_tokens, seconds)
        self._judge(rows, results, estimate)

    def _judge(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """Hold the step against what it took."""
        watch, is_off = self._watch, not self._policy.is_drafting
        only_decodes = self._is_judged or all(row.plan.only_decodes for row in rows)
        tells_of_plain = only_decodes and not self._fixed(rows) and watch.tells_of_plain_steps
        took_s = watch.end(is_plain=is_off and only_decodes)
        if is_off and self._any_free:  # pauses pass where the policy would have had a say
            self._policy.pass_by(len(rows), took_s if tells_of_plain else None)
        elif self._is_plain and self._is_judged and watch.is_queued:
            self._policy.observe_straight(len(rows), None if watch.ran_ahead else took_s)
        elif not self._is_plain and self._is_judged:
            num_tokens = sum(row.num_pending for row in rows)
            outcome = StepOutcome(
                num_rows=len(rows),
                num_committed=sum(len(result.token_ids) for result in results),
                num_expected=estimate.expected_tokens,
                modelled_s=estimate.seconds + self._cost.logits(num_tokens),
                took_s=took_s,
            )
            self._policy.observe_step(outcome)

    def _wants_look(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.will_look`, of rows that may draft."""
        if self._exit_look is None:
            return False
        if self._fixed(rows):
            return True
        # Without states to read there is nothing to see yet: they are kept from now on.
        return self._policy.will_look(len(rows), estimate) and any(row.estimates for row in rows)

    def _lookers(
        self, exit_index: int, arrivals: Sequence[Arrival], estimate: StepEstimate
    ) -> tuple[list[Arrival], float]:
        """Rows that the exit looks at, and what those left to the policy offer in sum."""
        fixed: list[Arrival] = []
        free = arrivals
        if not self._all_free:
            fixed = [a for a in arrivals if self._thresholds.of(a.row) is not None]
            free = [a for a in arrivals if self._thresholds.of(a.row) is None]
        chances = [(_hope(a), len(a.row.drafts) + 1 - first_unseen(a)) for a in free]
        places = self._policy.rows_to_look_at(exit_index, chances, estimate)
        return [*fixed, *(free[i] for i in places)], sum(chances[i][0] for i in places)

    def _able(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows that may draft."""
        return rows if self._all_free else [row for row in rows if row.is_draftable]

    def _fixed(self, rows: Sequence[Row]) -> list[Row]:
        """Rows that may draft, and that a fixed threshold decides about."""
        if self._all_free:
            return []
        return [r for r in rows if r.is_draftable and self._thresholds.of(r) is not None]

    def _learn_row(self, row: Row, token_ids: Sequence[int]) -> None:
        """A guess has a verdict if everything before it turned out right."""
        for guess in row.guesses:
            place = len(guess.path)
            if place < len(token_ids) and guess.path == tuple(token_ids[:place]):
                accepted = token_ids[place] == guess.token_id
                self._verdicts.append((guess.chance, accepted))
                if guess.chance.kind == LOOKUP:
                    row.state.lookup.judge(was_right=accepted)


def _hope(arrival: Arrival) -> float:
    """How much of a look's usual worth a row offers: that its drafts stand, or that those that no
    head has seen do not, and a head knows better.
    """
    row, first = arrival.row, first_unseen(arrival)
    before = row.drafts[first - 1].survival if first else 1.0
    after = row.drafts[first].survival if first < len(row.drafts) else before
    return row.survival + before - after
