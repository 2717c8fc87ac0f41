"""A `DraftingSwitch` for each batch size: what pays for one row may not pay for many."""

from engine.worker.drafting_switch import DraftingSwitch


class DraftingSwitches:
    """The switches of one policy, one per power of two of the batch size."""

    def __init__(self) -> None:
        self.current = DraftingSwitch()
        self._by_size = {0: self.current}

    def turn_to(self, num_rows: int) -> None:
        """Make the switch for this batch size the current one.

        A new one starts with the step times that the previous current one has measured.
        """
        size = (num_rows - 1).bit_length()
        if size not in self._by_size:
            self._by_size[size] = DraftingSwitch(self.current)
        self.current = self._by_size[size]
