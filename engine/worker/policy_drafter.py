"""Makes drafts from two sources: prompt look-up in the row's own text, and exit heads. The policy
picks.

Look-up drafts enter segment 0 together with the token they follow. At the first exit the head
screens them (`prompt_lookup_screen`); where it expects something better (`head_offers`), that
replaces them.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from engine.plan import RowResult
from engine.worker.alternates import Alternates
from engine.worker.chances import LOOKUP, Chance, Chances
from engine.worker.drafting_switch import StepOutcome
from engine.worker.exit_choice import EvaluationRequest
from engine.worker.exit_evaluator import Arrival, Opinion, first_unseen
from engine.worker.exit_policy import ExitPolicy
from engine.worker.head_offers import HeadOffers
from engine.worker.pending import append
from engine.worker.prompt_lookup_drafts import PromptLookupDrafts
from engine.worker.prompt_lookup_screen import PromptLookupScreen
from engine.worker.row import Draft, Row
from engine.worker.step_estimate import StepEstimate
from engine.worker.step_watch import StepWatch
from engine.worker.thresholds import Thresholds


class Evaluator(Protocol):
    """A source of exit heads' opinions: an `ExitEvaluator`, or a recording of one (training)."""

    def opinions(
        self, exit_index: int, arrivals: Sequence[Arrival], hidden: Tensor
    ) -> list[list[Opinion]]:
        """See `ExitEvaluator.opinions`."""


class PolicyDrafter:
    """Implements `Drafter` with prompt look-up and exit heads, as the policy decides."""

    def __init__(
        self,
        policy: ExitPolicy,
        chances: Chances,
        *,
        exit_layers: Sequence[int] = (),
        exit_evaluator: Evaluator | None = None,
        has_lookup: bool = True,
        threshold: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        is_queued: bool = False,
    ) -> None:
        """
        Args:
            exit_evaluator: Evaluates the heads at `exit_layers`; None: there are no heads.
            threshold: Fixed threshold of rows that ask for none; None: the policy decides.
            clock: In seconds; times the evaluations of exits.
            is_queued: Whether calls return before the device has computed.
        """
        self.exit_layers = list(exit_layers)
        self._policy = policy
        self._cost = policy.cost
        self._chances = chances
        self._thresholds = Thresholds(threshold)
        self._lookup = PromptLookupDrafts(chances) if has_lookup else None
        self._screen = PromptLookupScreen(policy, chances, self._thresholds)
        self._offers = HeadOffers(chances, self._thresholds)
        self._alternates = Alternates(policy, chances)
        self._exit_evaluator = exit_evaluator
        self._watch = StepWatch(clock, is_queued=is_queued)
        self._is_plain = False  # nothing was looked up, and no exit is worth evaluating
        self._all_free = self._any_free = False  # whether the policy decides about all, any rows
        self._has_fixed = False  # a fixed threshold decides about some row of this step
        self._is_judged = False  # whether this step tells if drafting pays
        self._verdicts: list[tuple[Chance, bool]] = []  # not learned from yet

    def begin(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.begin`."""
        self._is_plain = False
        self._watch.begin(is_idle=not estimate.is_ahead)
        free = [*map(self._thresholds.leaves, rows)]
        self._all_free, self._any_free = all(free), any(free)
        self._has_fixed = any(
            row.is_draftable and not is_free for row, is_free in zip(rows, free, strict=True)
        )
        self._is_judged = self._all_free or (
            self._any_free and not self._has_fixed and all(row.plan.only_decodes for row in rows)
        )
        self._policy.begin(estimate, may_control=self._is_judged)
        return self._has_fixed or (self._any_free and self._policy.is_drafting)

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
                drafts = self._lookup.after_pending(row)
                append(row, drafts[: self._thresholds.num_sure(row, drafts)], estimate)
            elif self._policy.is_drafting and (drafts := self._lookup.after_pending(row)):
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

    def will_evaluate_exits(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.will_evaluate_exits`."""
        self._is_plain = not self._wants_evaluation(self._able(rows), estimate)
        return not self._is_plain

    def catch_up(self) -> None:
        """See `Drafter.catch_up`: learn what the step before has taught."""
        for chance, accepted in self._verdicts:
            self._chances.learn(chance, accepted=accepted)
        self._verdicts.clear()
        self._cost.settle()

    def may_draft_next(self, rows: Sequence[Row]) -> bool:
        """See `Drafter.may_draft_next`."""
        able = self._able(rows)
        if not able:
            return False
        if self._has_fixed:
            return True
        if self._policy.is_control and not self._watch.tells_of_plain_steps:
            return False  # this control cannot be measured; the next step is one as well
        # What a look-up will find is not known; after finding nothing it seldom does so next.
        return self._exit_evaluator is not None and self._policy.will_evaluate_next(len(able))

    def wants_states(self, rows: Sequence[Row]) -> bool:
        """See `Drafter.wants_states`."""
        if self._exit_evaluator is None:
            return False
        if self._policy.may_evaluate_next:
            return True
        return any(self._thresholds.of(row) is not None for row in rows)

    def evaluate_exit(
        self,
        exit_index: int,
        arrivals: Sequence[Arrival],
        hidden: Tensor,
        estimate: StepEstimate,
    ) -> None:
        """See `Drafter.evaluate_exit`."""
        if self._exit_evaluator is None:
            return
        able = [a for a in arrivals if a.row.is_draftable and a.row.estimates]
        evaluated, offered = self._to_evaluate(exit_index, able, estimate)
        if not evaluated:
            return
        started = self._watch.now()
        views = self._exit_evaluator.opinions(exit_index, evaluated, hidden)
        num_tokens = sum(map(len, views))
        price = self._policy.rate(exit_index, estimate)
        estimate.seconds += self._cost.head(exit_index, num_tokens)
        if exit_index == 0 and any(len(view) > 1 for view in views):  # else nothing was looked up
            self._screen.screen(evaluated, views, estimate)
        fixed, free = self._offers.make(exit_index, evaluated, views)
        for offer in fixed:
            offer.take(exit_index, estimate)
        gains = [offer.gain for offer in free]
        chosen = self._policy.select(exit_index, gains, estimate, len(fixed))
        made = [gains[i] for i in chosen]
        self._policy.observe_evaluation(exit_index, offered, made, estimate, price=price)
        for index in chosen:
            free[index].take(exit_index, estimate)
        seen = zip((arrival.row for arrival in evaluated), views, strict=True)
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
        """Calibrate on verified guesses; on steps that only decode, judge whether drafting pays."""
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
        """Compare what the step brought with what it took."""
        watch, is_off = self._watch, not self._policy.is_drafting
        only_decodes = self._is_judged or all(row.plan.only_decodes for row in rows)
        is_plain = is_off and only_decodes and not self._has_fixed
        tells_of_plain = is_plain and watch.tells_of_plain_steps
        took_s = watch.end(is_plain=is_plain)
        if is_off and self._any_free:  # a pause counts steps that the policy would have decided on
            self._policy.pass_by(len(rows), took_s if tells_of_plain else None)
        elif self._is_plain and self._is_judged:
            self._policy.observe_straight(len(rows), took_s, ran_ahead=watch.ran_ahead)
        elif self._is_judged:
            num_tokens = sum(row.num_pending for row in rows)
            outcome = StepOutcome(
                num_rows=len(rows),
                num_committed=sum(len(result.token_ids) for result in results),
                num_expected=estimate.expected_tokens,
                modelled_s=estimate.seconds + self._cost.logits(num_tokens),
                took_s=took_s,
            )
            self._policy.observe_step(outcome)

    def _wants_evaluation(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.will_evaluate_exits`; these rows may draft."""
        if self._exit_evaluator is None:
            return False
        if self._has_fixed:
            return True
        # Heads need the last hidden states of the step before, which are kept from now on.
        has_states = any(row.estimates for row in rows)
        return self._policy.will_evaluate(len(rows), estimate) and has_states

    def _to_evaluate(
        self, exit_index: int, arrivals: Sequence[Arrival], estimate: StepEstimate
    ) -> tuple[list[Arrival], float]:
        """Return the arrivals to evaluate, and the sum of what those chosen by the policy offer."""
        fixed: list[Arrival] = []
        free = arrivals
        if not self._all_free:
            fixed = [a for a in arrivals if self._thresholds.of(a.row) is not None]
            free = [a for a in arrivals if self._thresholds.of(a.row) is None]
        requests = [
            EvaluationRequest(_worth_share(a), len(a.row.drafts) + 1 - first_unseen(a))
            for a in free
        ]
        places = self._policy.rows_to_evaluate(exit_index, requests, estimate)
        offered = sum(requests[i].worth_share for i in places)
        return [*fixed, *(free[i] for i in places)], offered

    def _able(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return the rows that may draft."""
        return rows if self._all_free else [row for row in rows if row.is_draftable]

    def _learn_row(self, row: Row, token_ids: Sequence[int]) -> None:
        """Collect the verdicts on guesses; a guess has one if all tokens before it were right."""
        for guess in row.guesses:
            place = len(guess.path)
            if place < len(token_ids) and guess.path == tuple(token_ids[:place]):
                accepted = token_ids[place] == guess.token_id
                self._verdicts.append((guess.chance, accepted))
                if guess.chance.kind == LOOKUP:
                    row.state.lookup.judge(was_right=accepted)


def _worth_share(arrival: Arrival) -> float:
    """Return the share of an evaluation's usual worth that a row offers.

    A head can extend the row's drafts if all of them are accepted, or correct the first that no
    head has seen if that one is not.
    """
    row, first = arrival.row, first_unseen(arrival)
    before = row.drafts[first - 1].survival if first else 1.0
    after = row.drafts[first].survival if first < len(row.drafts) else before
    return row.survival + before - after
