"""Where a GPU finds the newest tokens of a step that only decodes.

Between tokens read and the next pass launched a GPU has nothing to do, so this is the shortest way
there: numbers written into pinned memory that is there already, and one copy.
"""

from collections.abc import Sequence

import torch


class NewestBuffer:
    """Token ids, positions, slots and rows of a fixed number of tokens."""

    def __init__(self, size: int, spare_slot: int, device: torch.device) -> None:
        """Args:
        size: Tokens.
        spare_slot: Of the KV pool, no sequence's: where padding is written.
        """
        self.there = torch.zeros(4, size, dtype=torch.int32, device=device)
        # Two in turns: one may still be on its way where a step was given up.
        is_away = device.type == "cuda"
        self._here = [self.there.new_zeros(4, size, device="cpu") for _ in range(2)]
        if is_away:
            self._here = [here.pin_memory() for here in self._here]
        self._numbers = [here.numpy() for here in self._here]
        self._size = size
        self._padding = [[0], [0], [spare_slot], [0]]
        self.send([[]] * 4)

    def send(self, lists: Sequence[Sequence[int]]) -> None:
        """Fill the buffer; what is left of it becomes padding: row 0's first token, written
        elsewhere.
        """
        self._here.reverse()
        self._numbers.reverse()
        numbers, num_tokens = self._numbers[0], len(lists[0])
        numbers[:, :num_tokens] = lists
        if num_tokens < self._size:
            numbers[:, num_tokens:] = self._padding
        self.there.copy_(self._here[0], non_blocking=True)
