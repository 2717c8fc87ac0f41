"""Who drafts on, from which source: a rule that goes on only while the batch's expected tokens per
second rise.

A guess's chance comes from `chances`; a run of drafts survives with the product of its chances;
costs come from `cost_model`. Before drafts enter a segment the policy compares the step's expected
tokens per second with and without them. It also keeps account of what looking at exits brings, so
that no head is evaluated where that does not pay. Whether drafting as a whole pays is a
`DraftingSwitch`'s say, one for every size of a batch. Rows with a fixed threshold are decided by
that alone.

Source of the product rule: SpecDec++ (Huang et al. 2025): optimal stopping thresholds P(any
rejection so far).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

from engine.policy_reason import PolicyReport
from engine.worker.cost_model import CostModel
from engine.worker.drafting_switch import DraftingSwitch, StepOutcome
from engine.worker.looks import Looks

_NEGLIGIBLE = 0.01  # a survival below it is not worth the arithmetic


class Candidate(NamedTuple):
    """A draft that a head offers to a row."""

    gain: float  # expected tokens with it, less those of the drafts it would replace
    num_replaced: int = 0  # those drafts


@dataclass(slots=True)
class StepEstimate:
    """What the step has cost and promises so far."""

    num_tokens: int  # tokens that will reach the last pass
    expected_tokens: float  # tokens the step is expected to commit
    num_spare: int = 0  # alternates that it can still have
    is_ahead: bool = False  # a plain pass is on its way, and lost if anything is drafted
    seconds: float = 0.0  # modelled, of the parts already run; without what prompts add to a step
    last_seconds: float = 0.0  # measured, from the last layer's states to the results


class ExitPolicy:
    """Decides for the batch as a whole."""

    def __init__(
        self,
        num_exits: int,
        cost: CostModel,
        *,
        follows_cost: bool = False,
        longest_step_s: float | None = None,
        num_controls: int = 1,
    ) -> None:
        """Args:
        follows_cost: Times measured while serving correct the costs.
        longest_step_s: Drafts never make a step longer than this; None: as long as it pays.
        num_controls: See `DraftingSwitch`.
        """
        self._cost = cost
        self._longest_step_s = inf if longest_step_s is None else longest_step_s
        self._follows_cost = follows_cost
        self._num_exits = num_exits
        self._looks = Looks(num_exits, cost)
        # By size of the batch, in powers of two: what pays for one row may not for many.
        self._switches = {0: DraftingSwitch(num_controls)}
        self._switch = self._switches[0]
        self._num_controls = num_controls
        self.is_control = False  # this step drafts nothing, to see what that takes

    @property
    def is_drafting(self) -> bool:
        """Whether anything is drafted at present (rows with a fixed threshold aside)."""
        return self._switch.is_on and not self.is_control

    @property
    def speedup(self) -> float:
        """Modelled gain over plain steps, recent steps only; 1.0 before there are any."""
        return self._switch.speedup

    @property
    def report(self) -> PolicyReport:
        """Whether drafting is on or off, and why."""
        return self._switch.report(self._looks.worths)

    def begin(self, step: StepEstimate, *, may_control: bool) -> None:
        """A step begins: take off its seconds what the prompts in it will take. They are read in
        any case, and at the rate of a step that is long with them any draft would seem to pay.

        Args:
            may_control: The step only decodes, and all of it is left to the policy.
        """
        num_rows = int(step.expected_tokens)
        if num_rows:
            self._switch = self._switch_of(num_rows)
        self.is_control = may_control and self._switch.wants_control
        if num_rows < step.num_tokens and self._longest_step_s == inf:
            step.seconds -= self._cost.plain(step.num_tokens) - self._cost.plain(num_rows)

    def settle(self) -> None:
        """Learn what parts of steps were observed to take."""
        self._cost.settle()

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
            down = self._cost.segment(0, num_waiting + count)
            seconds = step.seconds + down + self._cost.rest(1, step.num_tokens + count)
            return seconds + lost_s if count else seconds

        return _best_prefixes(runs, step.expected_tokens, seconds_with, self._longest_step_s)

    def keep(
        self, exit_index: int, runs: Sequence[Sequence[float]], step: StepEstimate
    ) -> list[int]:
        """How many of every run's drafts, which stand at an exit, go on from there.

        Args:
            runs: Survivals as they are now; `step` is without them.
        """

        def seconds_with(count: int) -> float:
            return step.seconds + self._cost.rest(exit_index + 1, step.num_tokens + count)

        return _best_prefixes(runs, step.expected_tokens, seconds_with, self._longest_step_s)

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
        return self._switch.may_be_on_next and not self._looks.is_resting

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
        ranked = sorted(range(len(candidates)), key=lambda i: candidates[i].gain, reverse=True)
        best_rate, best_count = self._rate(exit_index, step), 0
        expected, num_replaced = step.expected_tokens, 0
        for count, index in enumerate(ranked, start=1):
            expected += candidates[index].gain
            num_replaced += candidates[index].num_replaced
            seconds = self._seconds_with(exit_index, step, count + num_fixed, num_replaced)
            if seconds <= self._longest_step_s and expected / seconds > best_rate:
                best_rate, best_count = expected / seconds, count
        return ranked[:best_count]

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
        price = max(self._rate(exit_index, step), self._switch.usual_rate)
        without = self._seconds_with(exit_index, step, num_waiting, num_waiting)
        best, best_count, gained = 0.0, 0, 0.0
        for count, gain in enumerate(gains, start=1):
            gained += gain
            seconds = self._seconds_with(exit_index, step, num_waiting + count, num_waiting)
            net = gained - price * (seconds - without)
            if net > best and seconds <= self._longest_step_s:
                best, best_count = net, count
        return best_count

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
            without = step.seconds + self._cost.rest(exit_index + 1, step.num_tokens)
            rate = self._rate(exit_index, step)
            gain = sum(candidate.gain for candidate in chosen) - rate * (with_them - without)
        self._looks.add(exit_index, max(gain, 0.0), offered)

    def observe_step(self, outcome: StepOutcome) -> None:
        """Learn what a decode step with drafts brought; switches off what does not pay."""
        self._switch.observe(self._cost.steady(outcome.num_rows), outcome)

    def observe_straight(self, num_rows: int, took_s: float | None) -> None:
        """Learn what a decode step took in which no draft was found.

        Args:
            took_s: None: its pass had run ahead.
        """
        cost = self._cost
        self._switch.observe_straight(cost.steady(num_rows), num_rows, cost.plain(num_rows), took_s)

    def pass_by(self, num_rows: int, took_s: float | None) -> None:
        """A step without drafts: a pause goes on.

        Args:
            took_s: Measured, of a step that only decoded so many rows; None: of another.
        """
        self._switch.pass_by(self._cost.steady(num_rows), took_s)

    def observe_segment(self, segment: int, num_tokens: int, seconds: float) -> None:
        """Learn what running a segment took."""
        if self._follows_cost:
            self._cost.observe(self._cost.segments[segment], num_tokens, seconds)

    def observe_head(self, exit_index: int, num_tokens: int, seconds: float) -> None:
        """Learn what looking at an exit took."""
        if self._follows_cost:
            self._cost.observe(self._cost.heads[exit_index], num_tokens, seconds)

    def observe_logits(self, num_tokens: int, seconds: float) -> None:
        """Learn what the end of a step took."""
        if self._follows_cost and num_tokens:
            self._cost.observe(self._cost.last_logits, num_tokens, seconds)

    def segment_cost(self, segment: int, num_tokens: int) -> float:
        """Modelled seconds of a segment."""
        return self._cost.segment(segment, num_tokens)

    def head_cost(self, exit_index: int, num_tokens: int) -> float:
        """Modelled seconds of evaluating a head."""
        return self._cost.head(exit_index, num_tokens)

    def lost_cost(self, step: StepEstimate) -> float:
        """Modelled seconds of the pass that is lost if a step begins to draft."""
        return self._cost.steady(step.num_tokens) if step.is_ahead else 0.0

    def logits_cost(self, num_tokens: int) -> float:
        """Modelled seconds of the final logits."""
        return self._cost.logits(num_tokens)

    def _switch_of(self, num_rows: int) -> DraftingSwitch:
        """That of batches about as large."""
        size = (num_rows - 1).bit_length()
        if size not in self._switches:
            self._switches[size] = DraftingSwitch(self._num_controls, self._switch)
        return self._switches[size]

    def _finds_look(self, num_rows: int, step: StepEstimate) -> bool:
        """Whether a look pays; if not, it is left at that for some steps."""
        chances = [(1.0, 1)] * num_rows
        seconds = step.seconds
        for index in range(self._num_exits):
            seconds += self._cost.segment(index, step.num_tokens)
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
        rest = self._cost.rest(exit_index + 1, step.num_tokens)
        return step.expected_tokens / (step.seconds + rest)

    def _seconds_with(
        self, exit_index: int, step: StepEstimate, num_new: int, num_replaced: int
    ) -> float:
        """Seconds to bring `num_new` drafts down to the exit, then everything to the end."""
        num_tokens = step.num_tokens + num_new - num_replaced
        rest = self._cost.rest(exit_index + 1, num_tokens)
        return step.seconds + self._cost.down(exit_index, num_new) + rest


def _best_prefixes(
    runs: Sequence[Sequence[float]],
    expected: float,
    seconds_with: Callable[[int], float],
    longest_s: float,
) -> list[int]:
    """Length of every run's share among the drafts that raise expected tokens per second most.

    Survivals fall along a run, so the best drafts of all runs are prefixes of them.
    """
    if not any(runs):
        return [0] * len(runs)
    ranked = sorted(
        ((survival, index) for index, run in enumerate(runs) for survival in run),
        key=lambda entry: entry[0],
        reverse=True,
    )
    best_rate, best_count = expected / seconds_with(0), 0
    for count, (survival, _) in enumerate(ranked, start=1):
        if survival < _NEGLIGIBLE:
            break
        expected += survival
        seconds = seconds_with(count)
        if seconds > longest_s:
            break
        rate = expected / seconds
        if rate > best_rate:
            best_rate, best_count = rate, count
    counts = [0] * len(runs)
    for _, index in ranked[:best_count]:
        counts[index] += 1
    return counts
