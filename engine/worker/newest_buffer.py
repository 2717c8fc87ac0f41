"""Where a GPU finds the newest tokens of a step that only decodes.

Between tokens read and the next pass launched a GPU has nothing to do, so this is the shortest way
there: numbers written into pinned memory that is there already, and one copy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


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
        self.send([], [[]] * 3)

    def send(self, token_ids: Sequence[int] | Tensor, places: Sequence[Sequence[int]]) -> None:
        """Fill the buffer; what is left of it becomes padding: row 0's first token, written
        elsewhere.

        Args:
            token_ids: A tensor: they are on the device only; what is no token there (-1) becomes
                token 0.
            places: Positions, slots and rows.
        """
        self._here.reverse()
        self._numbers.reverse()
        numbers, num_tokens = self._numbers[0], len(token_ids)
        numbers[0, :num_tokens] = 0 if isinstance(token_ids, Tensor) else token_ids
        numbers[1:, :num_tokens] = places
        if num_tokens < self._size:
            numbers[:, num_tokens:] = self._padding
        self.there.copy_(self._here[0], non_blocking=True)
        if isinstance(token_ids, Tensor):
            self.there[0, :num_tokens].copy_(token_ids.clamp(min=0))
