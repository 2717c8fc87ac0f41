"""The rows for which a fixed confidence threshold decides, instead of the policy."""

from collections.abc import Sequence

from engine.worker.row import Draft, Row


class Thresholds:
    """The fixed confidence thresholds of rows that have one."""

    def __init__(self, usual: float | None) -> None:
        """
        Args:
            usual: Threshold of rows that ask for none; None: the policy decides.
        """
        self._usual = usual

    def of(self, row: Row) -> float | None:
        """Return the threshold that decides for a row; None: the policy decides."""
        asked = row.state.start.early_exit.threshold
        return self._usual if asked is None else asked

    def leaves(self, row: Row) -> bool:
        """Whether a row may draft and the policy decides for it."""
        return row.is_draftable and self.of(row) is None

    def num_sure(self, row: Row, drafts: Sequence[Draft]) -> int:
        """Return how many of a row's first drafts exceed its threshold; all if it has none."""
        threshold = self.of(row)
        if threshold is None:
            return len(drafts)
        return next((i for i, d in enumerate(drafts) if d.confidence <= threshold), len(drafts))
