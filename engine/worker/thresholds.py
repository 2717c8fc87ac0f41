"""Which rows a fixed threshold decides about, instead of the policy."""

from collections.abc import Sequence

from engine.worker.row import Draft, Row


class Thresholds:
    """The confidence that drafts need, where it is fixed."""

    def __init__(self, usual: float | None) -> None:
        """Args: usual: Of rows that ask for none; None: the policy decides about those."""
        self._usual = usual

    def of(self, row: Row) -> float | None:
        """The one that decides for a row; None: the policy does."""
        asked = row.state.start.early_exit.threshold
        return self._usual if asked is None else asked

    def leaves(self, row: Row) -> bool:
        """Whether a row may draft, as the policy wants it."""
        return row.is_draftable and self.of(row) is None

    def num_sure(self, row: Row, drafts: Sequence[Draft]) -> int:
        """How many of the first of a row's drafts are sure enough; all if that is the policy's
        affair.
        """
        threshold = self.of(row)
        if threshold is None:
            return len(drafts)
        return next((i for i, d in enumerate(drafts) if d.confidence <= threshold), len(drafts))
