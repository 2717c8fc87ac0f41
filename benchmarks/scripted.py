"""A drafter that is told what the plain output is, and agrees with it always, never, or now and
then.

The two ends of verification, with drafts at every exit: everything accepted, everything rolled
back.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from engine.plan import RowResult
from engine.worker.exit_policy import StepEstimate
from engine.worker.row import Draft, Row

Agreement = Literal["always", "never", "sometimes"]


class ScriptedDrafter:
    """Implements `engine.worker.drafter.Drafter` from a script: prompt -> prompt and plain
    output.
    """

    def __init__(
        self,
        exit_layers: Sequence[int],
        outputs: Mapping[tuple[int, ...], Sequence[int]],
        agreement: Agreement,
        vocab_size: int,
    ) -> None:
        self.exit_layers = list(exit_layers)
        self._outputs = outputs
        self._agreement = agreement
        self._vocab_size = vocab_size

    def wants(self, row: Row) -> bool:
        """See `Drafter.wants`."""
        return row.has_room

    def draft(
        self, exit_index: int, rows: Sequence[Row], hidden: Tensor, estimate: StepEstimate
    ) -> list[int]:
        """See `Drafter.draft`. Every position has its exit, or none."""
        drafted = []
        for index, row in enumerate(rows):
            start = row.state.start
            known = self._outputs[tuple(start.token_ids[: start.num_prompt_tokens])]
            position = row.newest_position + 1
            exit_of_position = (position * 7 + 3) % (len(self.exit_layers) + 1)
            if position < len(known) and exit_of_position == exit_index:
                token_id = self._token(known[position], position)
                row.drafts.append(Draft(token_id, exit_index, confidence=0.9, survival=0.9))
                row.previous = hidden[index]
                drafted.append(index)
        return drafted

    def segment_cost(self, segment: int, num_tokens: int) -> float:
        """See `Drafter.segment_cost`: a script counts no costs."""
        return 0.0

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """See `Drafter.learn`: there is nothing to learn from a script."""

    def _token(self, token_id: int, position: int) -> int:
        is_wrong = self._agreement == "never" or (
            self._agreement == "sometimes" and position % 3 == 0
        )
        return (token_id + 1) % self._vocab_size if is_wrong else token_id
