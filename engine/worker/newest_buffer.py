"""The device buffer for the newest tokens of a step that only decodes.

A GPU idles from the time its tokens are read until the next pass is launched, so this is the
shortest way to send tokens: they are written to pinned memory allocated before, and sent by one
copy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class NewestBuffer:
    """Token ids, positions, slots and rows of a fixed number of tokens."""

    def __init__(self, size: int, spare_slot: int, device: torch.device) -> None:
        """
        Args:
            size: Number of tokens.
            spare_slot: Slot of the KV pool that no sequence has, for padding.
        """
        self.there = torch.zeros(4, size, dtype=torch.int32, device=device)
        # Three in turns: until the host waits for a step's tokens, two may still be on their way,
        # one for a pass that was launched ahead in vain and one for the step's own.
        is_away = device.type == "cuda"
        self._here = [self.there.new_zeros(4, size, device="cpu") for _ in range(3)]
        if is_away:
            self._here = [here.pin_memory() for here in self._here]
        self._numbers = [here.numpy() for here in self._here]
        self._size = size
        self._padding = [[0], [0], [spare_slot], [0]]
        self.send([], [[]] * 3)

    def send(self, token_ids: Sequence[int] | Tensor, places: Sequence[Sequence[int]]) -> None:
        """Fill the buffer; the rest of it becomes padding: row 0's first token with the spare slot.

        Args:
            token_ids: [T]. If a tensor, they are known on the device only, and -1, where no token
                was chosen, becomes token 0.
            places: Positions, slots and rows.
        """
        self._here.append(self._here.pop(0))
        self._numbers.append(self._numbers.pop(0))
        numbers, num_tokens = self._numbers[0], len(token_ids)
        numbers[0, :num_tokens] = 0 if isinstance(token_ids, Tensor) else token_ids
        numbers[1:, :num_tokens] = places
        if num_tokens < self._size:
            numbers[:, num_tokens:] = self._padding
        self.there.copy_(self._here[0], non_blocking=True)
        if isinstance(token_ids, Tensor):
            self.there[0, :num_tokens].copy_(token_ids.clamp(min=0))
