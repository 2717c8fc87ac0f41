"""Verified positions to train exit heads on: the states at every exit, and the final outcome.

The examples are a ring buffer on the device. Each has a serial number, which is never used again,
and knows the serial number of the position before it in its sequence, so that runs of drafts can be
unrolled. Online training uses them up in order of their serial numbers:

    overwritten | trained on: [oldest, training_end) | held out: [training_end, num_written)

This module knows tensors only.
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
    """T verified positions of any sequences; S is the number of exits."""

    exits: Tensor  # [S, T, E], unit RMS: the states at every exit layer
    last: Tensor  # [T, E], unit RMS: the last layer's states, before the final norm
    probs: Tensor  # [T, V' + 1]: the distribution that heads should predict, "other" last
    targets: list[int]  # columns of the tokens that followed; V' for any other token


class Examples:
    """A ring buffer of the newest verified positions."""

    def __init__(
        self, num_exits: int, hidden_size: int, num_columns: int, device: torch.device
    ) -> None:
        """
        Args:
            num_exits: S.
            hidden_size: E.
            num_columns: V' + 1.
            device: Where the tensors are kept.
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
        self._before = torch.full((self.capacity,), _NONE)  # predecessors' serial numbers
        self._device = device

    @property
    def oldest(self) -> int:
        """Serial number of the oldest example that has not been overwritten."""
        return max(0, self.num_written - self.capacity)

    def add(self, verified: Verified, before: Sequence[int | None]) -> None:
        """Add positions under the next serial numbers, overwriting the oldest ones.

        Args:
            verified: The positions.
            before: The serial number of each position's predecessor; None where it has none.
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
        """Return runs of consecutive positions, as long as a run of `depth` drafts needs.

        Each run ends with an example in [first, end) and goes back `depth` positions. Examples
        without that many predecessors have no run.

        Returns:
            [depth + 1, T], the oldest first: places in the ring, as `exit`, `last`, `probs` and
            `targets` take them.
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
        """Return the states [T, E] at an exit, in float32."""
        return self._exits[exit_index, send(places, self._device)].float()

    def last(self, places: Tensor) -> Tensor:
        """Return the last layer's states [T, E], in float32."""
        return self._last[send(places, self._device)].float()

    def probs(self, places: Tensor) -> Tensor:
        """Return the distributions [T, V' + 1], in float32."""
        return self._probs[send(places, self._device)].float()

    def targets(self, places: Tensor) -> Tensor:
        """Return the columns [T] of the tokens that followed, in int64."""
        return self._targets[places].to(self._device)
