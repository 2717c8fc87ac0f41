"""Which rows an exit looks at: as many as its looks have lately been worth their time, and now and
then a few to see whether they would be worth it again.

Knows what looks cost and have brought; when anything is drafted at all is the policy's say.
"""

from collections.abc import Iterator, Sequence

from engine.worker.cost_model import CostModel
from engine.worker.greedy import best_count
from engine.worker.look_account import LookAccount

_FEW = 4  # rows at most that an exit looks at to see whether it would pay again
_MUCH_LESS_OFTEN = 8  # is that tried where it cannot pay
_FIRST_REST = 8  # steps for which no look would pay if it does not in one; doubles up to
_LONGEST_REST = 32


class Looks:
    """Of all exits of a model."""

    def __init__(self, num_exits: int, cost: CostModel) -> None:
        self._cost = cost
        self._accounts = [LookAccount() for _ in range(num_exits)]
        self._rest = 0  # further steps without a look
        self._next_rest = _FIRST_REST
        self._rests_with = 0  # as long as there are so many rows

    @property
    def worths(self) -> tuple[float, ...]:
        """Tokens that a look brings, by exit."""
        return tuple([account.worth for account in self._accounts])

    @property
    def is_resting(self) -> bool:
        """Whether no exit looks in the step after this one, unless the batch changes."""
        return self._rest > 0

    def skips(self, num_rows: int) -> bool:
        """Whether this step is one for which it is decided already that nobody looks: to think it
        over takes time as well.
        """
        is_same = num_rows == self._rests_with
        if is_same and self._rest > 0:
            self._rest -= 1
            return True
        self._rest = 0
        if not is_same:
            self._next_rest = _FIRST_REST
        return False

    def rest(self, num_rows: int) -> None:
        """No look at any of so many rows pays: leave it at that for some steps, with this one."""
        for account in self._accounts:
            account.leave_out(self._next_rest)
        self._rest, self._rests_with = self._next_rest - 1, num_rows
        self._next_rest = min(2 * self._next_rest, _LONGEST_REST)

    def wake(self) -> None:
        """A look pays."""
        self._next_rest = _FIRST_REST

    def leave_out(self, exit_index: int) -> None:
        """An exit looks at nobody in this step."""
        self._accounts[exit_index].leave_out()

    def add(self, exit_index: int, gain: float, offered: float) -> None:
        """See `LookAccount.add`."""
        self._accounts[exit_index].add(gain, offered)

    def choose(
        self, exit_index: int, chances: Sequence[tuple[float, int]], rate: float
    ) -> list[int]:
        """Places of the rows to look at.

        Args:
            chances: Per row the share of a look's usual worth that it offers, and the tokens to
                evaluate.
            rate: Tokens per second that the time would bring elsewhere.
        """
        account = self._accounts[exit_index]
        order = sorted(range(len(chances)), key=lambda i: chances[i][0], reverse=True)
        if account.is_due(self._share(exit_index, len(order), rate)):
            return order[:_FEW]
        shares = [chances[i] for i in order]
        return order[: best_count(self._nets(exit_index, shares, rate), 0.0)]

    def _nets(
        self, exit_index: int, chances: Sequence[tuple[float, int]], rate: float
    ) -> Iterator[float]:
        """Tokens that a look at the first row, at the first two, and so on brings, less what its
        time would bring elsewhere.
        """
        worth, num_tokens = 0.0, 0
        for share, num_evaluated in chances:
            worth += share * self._accounts[exit_index].worth
            num_tokens += num_evaluated
            yield worth - rate * self._cost.head(exit_index, num_tokens)

    def _share(self, exit_index: int, num_rows: int, rate: float) -> float:
        """The share of a plain step's time that is put on trying a look again.

        A look brings a row one token at most. Where that would not pay if it cost half as much as
        is measured, a trial tells no more than whether it costs so much still.
        """
        share = self._cost.head(exit_index, num_rows) / self._cost.plain(num_rows)
        counts = (min(_FEW, num_rows), num_rows)
        may_pay = any(n >= 0.5 * rate * self._cost.head(exit_index, n) for n in counts)
        return share if may_pay else share * _MUCH_LESS_OFTEN
