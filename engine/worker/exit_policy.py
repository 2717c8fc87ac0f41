"""Who drafts on, from which source: a rule that goes on only while the batch's expected tokens per
second rise.

A guess's chance comes from `chances`; a run of drafts survives with the product of its chances;
costs come from `cost_model`. Before drafts enter a segment the policy compares the step's expected
tokens per second with and without them. It also keeps account of what looking at exits brings, so
that no head is evaluated where that does not pay. Whether drafting as a whole pays is decided by a
`DraftingSwitch`, one for each size of batch. Rows with a fixed threshold are decided by that alone.

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
from engine.worker.greedy import best_count, best_prefixes
from engine.worker.looks import Looks
from engine.worker.step_estimate import StepEstimate


class Candidate(NamedTuple):
    """A draft that a head offers to a row."""

    gain: float  # expected tokens with it, less those of the drafts it would replace
    num_replaced: int = 0  # those drafts


class ExitPolicy:
    """Decides for the batch as a whole."""

    def __init__(
        self,
        num_exits: int,
        cost: CostModel,
        *,
        longest_step_s: float | None = None,
        num_controls: int = 1,
    ) -> None:
        """
        Args:
            longest_step_s: Drafts never make a step longer than this; None: as long as it pays.
            num_controls: See `DraftingSwitch`.
        """
        self.cost = cost
        self._longest_step_s = inf if longest_step_s is None else longest_step_s
        self._num_exits = num_exits
        self._looks = Looks(num_exits, cost)
        self._switches = DraftingSwitches(num_controls)
        self.is_control = False  # this step drafts nothing, to see what that takes

    @property
    def is_drafting(self) -> bool:
        """Whether anything is drafted at present (rows with a fixed threshold aside)."""
        return self._switches.current.is_on and not self.is_control

    @property
    def report(self) -> PolicyReport:
        """Whether drafting is on or off, and why."""
        return self._switches.current.report(self._looks.worths)

    def begin(self, step: StepEstimate, *, may_control: bool) -> None:
        """A step begins: take off its seconds what the prompts in it will take. They are read in
        any case, and at the rate of a step that is long with them any draft would seem to pay.

        Args:
            may_control: The step only decodes, and all of it is left to the policy.
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
        """How many of every row's look-up drafts enter segment 0 together with what waits there.

        Args:
            runs: Survivals of each run's drafts, falling.
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
        """How many of every run's drafts, which stand at an exit, go on from there.

        Args:
            runs: Survivals as they are now; `step` is without them.
        """

        def seconds_with(count: int) -> float:
            return step.seconds + self.cost.rest(exit_index + 1, step.num_tokens + count)

        return best_prefixes(runs, step.expected_tokens, seconds_with, self._longest_step_s)

    def rows_to_look_at(
        self, exit_index: int, chances: Sequence[tuple[float, int]], step: StepEstimate
    ) -> list[int]:
        """Which rows the exit should look at.

        Args:
            chances: Per row the share of a look's usual worth that it offers, and the tokens to
                evaluate.
        """
        if not self.is_drafting or not chances:
            return []
        is_too_long = self._is_look_too_long(exit_index, step)
        rate = self._rate(exit_index, step)
        chosen = [] if is_too_long else self._looks.choose(exit_index, chances, rate)
        if not chosen:
            self._looks.leave_out(exit_index)
        return chosen

    def will_look(self, num_rows: int, step: StepEstimate) -> bool:
        """Whether any exit should look at any of so many rows, all of which offer everything. A
        no is not thought over in every step.
        """
        if not self.is_drafting or not num_rows or self._looks.skips(num_rows):
            return False
        return self._finds_look(num_rows, step)

    def will_look_next(self, num_rows: int) -> bool:
        """The same of the step after this one, where it only decodes as many rows: what looks cost
        and bring is known in advance.
        """
        step = StepEstimate(num_tokens=num_rows, expected_tokens=float(num_rows))
        return self.may_look_next and self._finds_look(num_rows, step)

    @property
    def may_look_next(self) -> bool:
        """Whether an exit may look in the step after this one."""
        return self._switches.current.may_be_on_next and not self._looks.is_resting

    def select(
        self,
        exit_index: int,
        candidates: Sequence[Candidate],
        step: StepEstimate,
        num_fixed: int = 0,
    ) -> list[int]:
        """Places of the candidates that draft, best first; empty: go down.

        Args:
            num_fixed: Drafts that are made at this exit in any case.
        """
        if not self.is_drafting:
            return []
        order = sorted(range(len(candidates)), key=lambda i: candidates[i].gain, reverse=True)
        ranked = [candidates[i] for i in order]
        rates = self._rates_with(exit_index, ranked, step, num_fixed)
        return order[: best_count(rates, self._rate(exit_index, step))]

    def num_alternates(
        self, exit_index: int, gains: Sequence[float], num_waiting: int, step: StepEstimate
    ) -> int:
        """How many alternates enter segment 0, together with the drafts that wait there. Nothing
        follows an alternate, so that its time has the price that it has in steps as they usually
        become, not as this one stands before its further drafts.

        Args:
            gains: Expected tokens of each, falling.
            num_waiting: Those drafts, of rows left to the policy, counted in `step`.
        """
        if not self.is_drafting or not gains:
            return 0
        price = max(self._rate(exit_index, step), self._switches.current.usual_rate)
        without_s = self._seconds_with(exit_index, step, num_waiting, num_waiting)

        def nets() -> Iterator[float]:
            gained = 0.0
            for count, gain in enumerate(gains, start=1):
                gained += gain
                with_them_s = self._seconds_with(exit_index, step, num_waiting + count, num_waiting)
                is_too_long = with_them_s > self._longest_step_s
                yield -inf if is_too_long else gained - price * (with_them_s - without_s)

        return best_count(nets(), 0.0)

    def observe_look(
        self,
        exit_index: int,
        offered: float,
        chosen: Sequence[Candidate],
        step: StepEstimate,
    ) -> None:
        """Keep account of a look.

        Args:
            offered: Sum of what the rows offered, see `rows_to_look_at`.
            chosen: What came of it; `step` is without them.
        """
        gain = 0.0
        if chosen:
            replaced = sum(candidate.num_replaced for candidate in chosen)
            with_them = self._seconds_with(exit_index, step, len(chosen), replaced)
            without = step.seconds + self.cost.rest(exit_index + 1, step.num_tokens)
            rate = self._rate(exit_index, step)
            gain = sum(candidate.gain for candidate in chosen) - rate * (with_them - without)
        self._looks.add(exit_index, max(gain, 0.0), offered)

    def observe_step(self, outcome: StepOutcome) -> None:
        """Learn what a decode step with drafts brought; switches off what does not pay."""
        self._switches.current.observe(self.cost.steady(outcome.num_rows), outcome)

    def observe_straight(self, num_rows: int, took_s: float | None) -> None:
        """Learn what a decode step took in which no draft was found.

        Args:
            took_s: None: its pass had run ahead.
        """
        steady_s, plain_s = self.cost.steady(num_rows), self.cost.plain(num_rows)
        self._switches.current.observe_straight(steady_s, num_rows, plain_s, took_s)

    def pass_by(self, num_rows: int, took_s: float | None) -> None:
        """Count a step without drafts towards the end of a pause.

        Args:
            took_s: Measured, of a step that only decoded so many rows; None: of another.
        """
        self._switches.current.pass_by(self.cost.steady(num_rows), took_s)

    def lost_cost(self, step: StepEstimate) -> float:
        """Modelled seconds of the pass that is lost if a step begins to draft."""
        return self.cost.steady(step.num_tokens) if step.is_ahead else 0.0

    def _rates_with(
        self, exit_index: int, ranked: Sequence[Candidate], step: StepEstimate, num_fixed: int
    ) -> Iterator[float]:
        """Expected tokens per second with the first candidate, the first two, and so on."""
        expected, num_replaced = step.expected_tokens, 0
        for count, candidate in enumerate(ranked, start=1):
            expected += candidate.gain
            num_replaced += candidate.num_replaced
            seconds = self._seconds_with(exit_index, step, count + num_fixed, num_replaced)
            yield -inf if seconds > self._longest_step_s else expected / seconds

    def _finds_look(self, num_rows: int, step: StepEstimate) -> bool:
        """Whether a look pays; if not, it is left at that for some steps."""
        chances = [(1.0, 1)] * num_rows
        seconds = step.seconds
        for index in range(self._num_exits):
            seconds += self.cost.segment(index, step.num_tokens)
            there = replace(step, seconds=seconds)
            if self._is_look_too_long(index, there):
                continue
            if self._looks.choose(index, chances, self._rate(index, there)):
                self._looks.wake()
                return True
        self._looks.rest(num_rows)
        return False

    def _is_look_too_long(self, exit_index: int, step: StepEstimate) -> bool:
        """Whether no draft that a look brings would be allowed the time it takes."""
        return self._seconds_with(exit_index, step, 1, 0) > self._longest_step_s

    def _rate(self, exit_index: int, step: StepEstimate) -> float:
        """Expected tokens per second if everything went down from this exit now."""
        rest = self.cost.rest(exit_index + 1, step.num_tokens)
        return step.expected_tokens / (step.seconds + rest)

    def _seconds_with(
        self, exit_index: int, step: StepEstimate, num_new: int, num_replaced: int
    ) -> float:
        """Seconds to bring `num_new` drafts down to the exit, then everything to the end."""
        num_tokens = step.num_tokens + num_new - num_replaced
        rest = self.cost.rest(exit_index + 1, num_tokens)
        return step.seconds + self.cost.down(exit_index, num_new) + rest
