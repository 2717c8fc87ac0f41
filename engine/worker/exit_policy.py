"""The rule for which rows draft on, and from which source: drafts are added only while the batch's
expected tokens per second rise.

The probability that a guess is accepted comes from `chances`; a run of drafts survives with the
product of its probabilities; costs come from `cost_model`. Before drafts enter a segment the policy
compares the step's expected tokens per second with and without them. It also keeps account of what
evaluating exits brings, so that no head is evaluated where that does not pay. Whether drafting as a
whole pays is decided by a `DraftingSwitch`, one for each size of batch. For rows with a fixed
threshold the threshold alone decides.

Source of the product rule: SpecDec++ (Huang et al. 2025): optimal stopping thresholds P(any
rejection so far).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf
from typing import NamedTuple

from engine.policy_reason import PolicyReport
from engine.worker.cost_model import CostModel
from engine.worker.drafting_switch import StepOutcome
from engine.worker.drafting_switches import DraftingSwitches
from engine.worker.exit_choice import EvaluationRequest, ExitChoice
from engine.worker.greedy import best_count, best_prefixes
from engine.worker.step_estimate import StepEstimate


class DraftGain(NamedTuple):
    """What a draft that a head offers would change in the step's account."""

    tokens: float  # expected tokens with it, less those of the drafts that it would replace
    num_replaced: int = 0  # drafts that it would replace


class ExitPolicy:
    """Decides for the batch as a whole which drafts are made."""

    def __init__(
        self,
        num_exits: int,
        cost: CostModel,
        *,
        longest_step_s: float | None = None,
    ) -> None:
        """
        Args:
            longest_step_s: The longest that drafts may make a step; None: as long as it pays.
        """
        self.cost = cost
        self._longest_step_s = inf if longest_step_s is None else longest_step_s
        self._num_exits = num_exits
        self._exit_choice = ExitChoice(num_exits, cost)
        self._switches = DraftingSwitches()
        self.is_control = False  # this step drafts nothing, to measure a plain step

    @property
    def is_drafting(self) -> bool:
        """Whether anything is drafted at present (rows with a fixed threshold aside)."""
        return self._switches.current.is_on and not self.is_control

    @property
    def report(self) -> PolicyReport:
        """Whether drafting is on or off, and why."""
        return self._switches.current.report(self._exit_choice.worths)

    def begin(self, step: StepEstimate, *, may_control: bool) -> None:
        """Begin a step.

        The time that prompts in the step will take is subtracted from its seconds. They are
        computed in any case, and in a step that is long because of them any draft would seem to
        pay.

        Args:
            may_control: Whether the step only decodes and the policy decides about all of it.
        """
        num_rows = int(step.expected_tokens)
        if num_rows:
            self._switches.turn_to(num_rows)
        self.is_control = may_control and self._switches.current.wants_control
        if num_rows < step.num_tokens and self._longest_step_s == inf:
            step.seconds -= self.cost.plain(step.num_tokens) - self.cost.plain(num_rows)

    def extend(
        self, runs: Sequence[Sequence[float]], num_waiting: int, step: StepEstimate
    ) -> list[int]:
        """Return how many of each row's look-up drafts enter segment 0 with the waiting tokens.

        Args:
            runs: Survivals of each row's drafts, in descending order.
            num_waiting: Tokens of all rows that enter anyway.
        """
        if not self.is_drafting:
            return [0] * len(runs)
        lost_s = self.lost_cost(step)

        def seconds_with(count: int) -> float:
            down = self.cost.segment(0, num_waiting + count)
            seconds = step.seconds + down + self.cost.rest(1, step.num_tokens + count)
            return seconds + lost_s if count else seconds

        return best_prefixes(runs, step.expected_tokens, seconds_with, self._longest_step_s)

    def keep(
        self, exit_index: int, runs: Sequence[Sequence[float]], step: StepEstimate
    ) -> list[int]:
        """Return how many of each row's drafts, which have arrived at an exit, go on from there.

        Args:
            runs: Survivals of each row's drafts as they are now; `step` does not count them.
        """

        def seconds_with(count: int) -> float:
            return step.seconds + self.cost.rest(exit_index + 1, step.num_tokens + count)

        return best_prefixes(runs, step.expected_tokens, seconds_with, self._longest_step_s)

    def rows_to_evaluate(
        self, exit_index: int, requests: Sequence[EvaluationRequest], step: StepEstimate
    ) -> list[int]:
        """Return the indices of the rows that the exit should evaluate.

        Args:
            requests: One per row.
        """
        if not self.is_drafting or not requests:
            return []
        is_too_long = self._is_evaluation_too_long(exit_index, step)
        chosen = [] if is_too_long else self._choose(exit_index, requests, step)
        if not chosen:
            self._exit_choice.leave_out(exit_index)
        return chosen

    def will_evaluate(self, num_rows: int, step: StepEstimate) -> bool:
        """Whether any exit should be evaluated in a step of `num_rows` rows without drafts.

        A negative answer holds for some steps without being computed again.
        """
        if not self.is_drafting or not num_rows or self._exit_choice.skips(num_rows):
            return False
        return self._finds_exit(num_rows, step)

    def will_evaluate_next(self, num_rows: int) -> bool:
        """Whether any exit should be evaluated in the next step, if it only decodes as many rows.

        What evaluations cost and bring is known in advance.
        """
        step = StepEstimate(num_tokens=num_rows, expected_tokens=float(num_rows))
        return self.may_evaluate_next and self._finds_exit(num_rows, step)

    @property
    def may_evaluate_next(self) -> bool:
        """Whether an exit may be evaluated in the step after this one."""
        return self._switches.current.may_be_on_next and not self._exit_choice.is_resting

    def select(
        self,
        exit_index: int,
        gains: Sequence[DraftGain],
        step: StepEstimate,
        num_fixed: int = 0,
    ) -> list[int]:
        """Return the indices of the offered drafts to make, best first.

        Args:
            gains: One per offered draft.
            num_fixed: Number of drafts that are made at this exit in any case; `step` counts them.
        """
        if not self.is_drafting:
            return []
        order = sorted(range(len(gains)), key=lambda i: gains[i].tokens, reverse=True)
        ranked = [gains[i] for i in order]
        rates = self._rates_with(exit_index, ranked, step, num_fixed)
        without_s = self._seconds_with(exit_index, step, num_fixed, num_fixed)
        return order[: best_count(rates, step.expected_tokens / without_s)]

    def num_alternates(
        self, exit_index: int, gains: Sequence[float], num_waiting: int, step: StepEstimate
    ) -> int:
        """Return how many alternates enter segment 0 together with the drafts that wait there.

        Nothing follows an alternate, so its time is priced at the rate that steps usually reach,
        not at the rate of this one before its further drafts.

        Args:
            gains: Expected tokens of each alternate, in descending order.
            num_waiting: Number of waiting drafts of rows that the policy decides about; `step`
                counts them.
        """
        if not self.is_drafting or not gains:
            return 0
        price = max(self.rate(exit_index, step), self._switches.current.usual_rate)
        without_s = self._seconds_with(exit_index, step, num_waiting, num_waiting)

        def nets() -> Iterator[float]:
            gained = 0.0
            for count, gain in enumerate(gains, start=1):
                gained += gain
                with_them_s = self._seconds_with(exit_index, step, num_waiting + count, num_waiting)
                is_too_long = with_them_s > self._longest_step_s
                yield -inf if is_too_long else gained - price * (with_them_s - without_s)

        return best_count(nets(), 0.0)

    def rate(self, exit_index: int, step: StepEstimate) -> float:
        """Return the expected tokens per second if all tokens went on from this exit now."""
        rest = self.cost.rest(exit_index + 1, step.num_tokens)
        return step.expected_tokens / (step.seconds + rest)

    def observe_evaluation(
        self,
        exit_index: int,
        offered: float,
        chosen: Sequence[DraftGain],
        step: StepEstimate,
        *,
        price: float,
    ) -> None:
        """Learn what an evaluation brought.

        Args:
            offered: Sum of the `worth_share` of the rows evaluated.
            chosen: The drafts that came of it; `step` does not count them.
            price: Tokens per second that its time would have brought elsewhere.
        """
        gain = 0.0
        if chosen:
            replaced = sum(draft.num_replaced for draft in chosen)
            with_them = self._seconds_with(exit_index, step, len(chosen), replaced)
            without = step.seconds + self.cost.rest(exit_index + 1, step.num_tokens)
            rate = self.rate(exit_index, step)
            gain = sum(draft.tokens for draft in chosen) - rate * (with_them - without)
        self._exit_choice.add(exit_index, max(gain, 0.0), offered, step.num_tokens, price)

    def observe_step(self, outcome: StepOutcome) -> None:
        """Learn what a decode step with drafts brought; switch drafting off if it does not pay."""
        self._switches.current.observe(self.cost.steady(outcome.num_rows), outcome)

    def observe_straight(self, num_rows: int, took_s: float, *, ran_ahead: bool) -> None:
        """Learn what a decode step took in which drafts were looked for and none was found.

        Args:
            took_s: Measured.
            ran_ahead: Whether its pass was launched in the step before.
        """
        switch, steady_s = self._switches.current, self.cost.steady(num_rows)
        if ran_ahead:
            switch.observe_free(steady_s, num_rows, took_s)
        else:
            switch.observe_straight(steady_s, num_rows, self.cost.plain(num_rows), took_s)

    def pass_by(self, num_rows: int, took_s: float | None) -> None:
        """Count a step without drafts towards the end of a pause.

        Args:
            took_s: Measured, if the step only decoded `num_rows` rows; otherwise None.
        """
        self._switches.current.pass_by(self.cost.steady(num_rows), took_s)

    def lost_cost(self, step: StepEstimate) -> float:
        """Return the modelled seconds of the pass run ahead that is lost if the step drafts."""
        return self.cost.steady(step.num_tokens) if step.is_ahead else 0.0

    def _rates_with(
        self, exit_index: int, ranked: Sequence[DraftGain], step: StepEstimate, num_fixed: int
    ) -> Iterator[float]:
        """Yield the expected tokens per second with the first draft, the first two, and so on."""
        expected, num_replaced = step.expected_tokens, num_fixed
        for count, draft in enumerate(ranked, start=1):
            expected += draft.tokens
            num_replaced += draft.num_replaced
            seconds = self._seconds_with(exit_index, step, count + num_fixed, num_replaced)
            yield -inf if seconds > self._longest_step_s else expected / seconds

    def _finds_exit(self, num_rows: int, step: StepEstimate) -> bool:
        """Whether evaluating an exit pays; if not, the answer is kept for some steps."""
        requests = [EvaluationRequest(1.0, 1)] * num_rows
        seconds = step.seconds
        for index in range(self._num_exits):
            seconds += self.cost.segment(index, step.num_tokens)
            there = replace(step, seconds=seconds)
            if self._is_evaluation_too_long(index, there):
                continue
            if self._choose(index, requests, there):
                self._exit_choice.wake()
                return True
        self._exit_choice.rest(num_rows)
        return False

    def _choose(
        self, exit_index: int, requests: Sequence[EvaluationRequest], step: StepEstimate
    ) -> list[int]:
        """Return the indices of the rows that an exit should evaluate, however long that takes."""
        rate = self.rate(exit_index, step)
        trial_steps = self._trial_steps(exit_index, len(requests))
        return self._exit_choice.choose(exit_index, requests, rate, trial_steps)

    def _trial_steps(self, exit_index: int, num_rows: int) -> float:
        """Return how many plain steps are lost if one evaluates an exit, as steps were measured.

        Neither that step nor the next has a pass that ran ahead.
        """
        plain_s, steady_s = self.cost.plain(num_rows), self.cost.steady(num_rows)
        evaluating_s = plain_s + self.cost.head(exit_index, num_rows)
        took = self._switches.current.in_plain_steps(evaluating_s, steady_s)
        return took - 1.0 + plain_s / steady_s - 1.0

    def _is_evaluation_too_long(self, exit_index: int, step: StepEstimate) -> bool:
        """Whether even one draft from this exit would make the step longer than allowed."""
        return self._seconds_with(exit_index, step, 1, 0) > self._longest_step_s

    def _seconds_with(
        self, exit_index: int, step: StepEstimate, num_new: int, num_replaced: int
    ) -> float:
        """Return the seconds to bring new drafts down to the exit, then all tokens to the end."""
        num_tokens = step.num_tokens + num_new - num_replaced
        rest = self.cost.rest(exit_index + 1, num_tokens)
        return step.seconds + self.cost.down(exit_index, num_new) + rest
