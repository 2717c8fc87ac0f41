"""Chooses the rows at which an exit head is evaluated.

An exit evaluates as many rows as evaluations have lately been worth their time, and now and then a
few rows to find out whether they would be worth it again. Knows what evaluations cost and have
brought; whether anything is drafted at all is up to the policy.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.worker.cost_model import CostModel
from engine.worker.exit_account import ExitAccount
from engine.worker.greedy import best_count

_MOST_TRIAL_ROWS = 4  # rows evaluated only to find out whether that would pay again
_HOPELESS_FACTOR = 8  # trials are this many times rarer where an evaluation could not pay
_FIRST_REST = 8  # steps without evaluations once a step has found that none would pay
_LONGEST_REST = 16  # steps; a rest is twice as long as the one before, up to this


class EvaluationRequest(NamedTuple):
    """What evaluating one row at an exit promises and takes."""

    worth_share: float  # share of an evaluation's usual worth that the row offers
    num_tokens: int  # tokens of the row to evaluate


class ExitChoice:
    """The rows to evaluate at each exit of a model, by what evaluations there have brought."""

    def __init__(self, num_exits: int, cost: CostModel) -> None:
        self._cost = cost
        self._accounts = [ExitAccount() for _ in range(num_exits)]
        self._rest = 0  # further steps without evaluations
        self._next_rest = _FIRST_REST
        self._rests_with = 0  # number of rows that the rest holds for

    @property
    def worths(self) -> tuple[float, ...]:
        """Expected tokens that evaluating a row brings, by exit."""
        return tuple([account.worth for account in self._accounts])

    @property
    def is_resting(self) -> bool:
        """Whether no exit is evaluated in the step after this one, unless the batch changes."""
        return self._rest > 0

    def skips(self, num_rows: int) -> bool:
        """Whether it is already decided that this step evaluates nothing.

        Deciding takes time as well, so a decision against evaluations holds for a few steps with
        the same number of rows. Counts this step towards the end of that rest.
        """
        is_same = num_rows == self._rests_with
        if is_same and self._rest > 0:
            self._rest -= 1
            self._leave_out_all()
            return True
        self._rest = 0
        if not is_same:
            self._next_rest = _FIRST_REST
        return False

    def rest(self, num_rows: int) -> None:
        """Evaluate nothing in this step and some further ones of as many rows: it would not pay.

        Each of them is counted when it comes: where batches change, few rests are run to their end.
        """
        self._leave_out_all()
        self._rest, self._rests_with = self._next_rest - 1, num_rows
        self._next_rest = min(2 * self._next_rest, _LONGEST_REST)

    def wake(self) -> None:
        """Let the next rest be a short one: an evaluation pays."""
        self._next_rest = _FIRST_REST

    def leave_out(self, exit_index: int) -> None:
        """Count a step in which an exit evaluates nothing."""
        self._accounts[exit_index].leave_out()

    def add(self, exit_index: int, gain: float, offered: float, num_rows: int, rate: float) -> None:
        """Learn what an evaluation brought.

        Args:
            gain: See `ExitAccount.add`, like `offered`.
            num_rows: Rows of the step, most of which a trial leaves out.
            rate: Tokens per second that the time would have brought elsewhere.
        """
        of_all = gain / offered * num_rows if offered else 0.0
        pays = of_all > rate * self._cost.head(exit_index, num_rows)
        self._accounts[exit_index].add(gain, offered, pays=pays)

    def choose(
        self,
        exit_index: int,
        requests: Sequence[EvaluationRequest],
        rate: float,
        trial_steps: float,
    ) -> list[int]:
        """Return the indices of the rows to evaluate.

        Args:
            requests: One per row.
            rate: Tokens per second that the time would bring elsewhere.
            trial_steps: Plain steps that are lost by trying whether evaluating pays, as measured;
                no fewer count than the evaluation alone is said to take.
        """
        account = self._accounts[exit_index]
        order = sorted(range(len(requests)), key=lambda i: requests[i].worth_share, reverse=True)
        if account.is_due(self._trial_share(exit_index, len(order), rate, trial_steps)):
            return order[:_MOST_TRIAL_ROWS]
        ranked = [requests[i] for i in order]
        return order[: best_count(self._nets(exit_index, ranked, rate), 0.0)]

    def _leave_out_all(self) -> None:
        for account in self._accounts:
            account.leave_out()

    def _nets(
        self, exit_index: int, requests: Sequence[EvaluationRequest], rate: float
    ) -> Iterator[float]:
        """Yield the tokens that evaluating the first row, the first two, and so on brings, less
        what the time would bring elsewhere.
        """
        worth, num_tokens = 0.0, 0
        for request in requests:
            worth += request.worth_share * self._accounts[exit_index].worth
            num_tokens += request.num_tokens
            yield worth - rate * self._cost.head(exit_index, num_tokens)

    def _trial_share(
        self, exit_index: int, num_rows: int, rate: float, trial_steps: float
    ) -> float:
        """Return the share of a plain step's time that a trial evaluation counts as taking.

        An evaluation brings a row one token at most. Where that would not pay even if it cost half
        as much as measured, a trial could only find that it still costs too much. It then counts
        as several times dearer than it is, so that it is tried less often.
        """
        head_s = self._cost.head(exit_index, num_rows)
        share = max(trial_steps, head_s / self._cost.plain(num_rows))
        counts = (min(_MOST_TRIAL_ROWS, num_rows), num_rows)
        may_pay = any(n >= 0.5 * rate * self._cost.head(exit_index, n) for n in counts)
        return share if may_pay else share * _HOPELESS_FACTOR
