"""Verified positions to learn from: what every exit saw there, and what the last layer made of it.

A ring of fixed size on the device; an example is named by its serial number, which never comes
again. Each knows the example of the position before it in its sequence, so that runs of drafts can
be unrolled. Knows tensors only.

    [ overwritten | to study: [oldest, num_studied) | held out: [num_studied, num_written) )
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.worker.upload import send

_MOST_EXAMPLES = 4096
_MOST_BYTES = 128 << 20
_NONE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Positions, of any sequences."""

    exits: Tensor  # [S, T, E], unit RMS: the states at every exit layer
    last: Tensor  # [T, E], unit RMS: the last layer's states, before the final norm
    probs: Tensor  # [T, V' + 1]: what a head should have said, "other" last
    targets: list[int]  # columns of the tokens that came; V' for one outside


class Examples:
    """The newest verified positions."""

    def __init__(
        self, num_exits: int, hidden_size: int, num_columns: int, device: torch.device
    ) -> None:
        """Args:
        num_columns: V' + 1.
        """
        per_example = 2 * ((num_exits + 1) * hidden_size + num_columns)
        self.capacity = min(_MOST_EXAMPLES, max(256, _MOST_BYTES // per_example))
        self.num_written = 0

        def half(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float16, device=device)

        self._exits = half(num_exits, self.capacity, hidden_size)
        self._last = half(self.capacity, hidden_size)
        self._probs = half(self.capacity, num_columns)
        self._targets = torch.zeros(self.capacity, dtype=torch.int64)
        self._before = torch.full((self.capacity,), _NONE)  # serial numbers
        self._device = device

    @property
    def oldest(self) -> int:
        """Serial number of the oldest example that is still there."""
        return max(0, self.num_written - self.capacity)

    def add(self, verified: Verified, before: Sequence[int | None]) -> None:
        """Take positions in, in the place of the oldest; they get the next serial numbers.

        Args:
            before: Per position, serial number of the one before it; None: there is none.
        """
        count = len(verified.targets)
        serials = torch.arange(self.num_written, self.num_written + count)
        places = serials % self.capacity
        on_device = send(places, self._device)
        self._exits[:, on_device] = verified.exits.half()
        self._last[on_device] = verified.last.half()
        self._probs[on_device] = verified.probs.half()
        self._targets[places] = torch.tensor(verified.targets)
        self._before[places] = torch.tensor([_NONE if each is None else each for each in before])
        self.num_written += count

    def runs(self, first: int, end: int, depth: int) -> Tensor:
        """Runs [depth + 1, T] of consecutive positions: each ends with an example of [first, end)
        and goes back `depth` positions; as places for `exit`, `last` and so on, oldest first.
        """
        serials = torch.arange(min(max(first, self.oldest), end), end)
        run = [serials]
        for _ in range(depth):
            before = self._before[run[-1] % self.capacity]
            run.append(before)
            are_there = before >= self.oldest
            run = [each[are_there] for each in run]
        return torch.stack(run[::-1]) % self.capacity

    def exit(self, exit_index: int, places: Tensor) -> Tensor:
        """[T, E] float32."""
        return self._exits[exit_index, send(places, self._device)].float()

    def last(self, places: Tensor) -> Tensor:
        """[T, E] float32."""
        return self._last[send(places, self._device)].float()

    def probs(self, places: Tensor) -> Tensor:
        """[T, V' + 1] float32."""
        return self._probs[send(places, self._device)].float()

    def targets(self, places: Tensor) -> Tensor:
        """[T] int64."""
        return self._targets[places].to(self._device)
