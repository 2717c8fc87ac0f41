"""A drafter that is told what the plain output is, and agrees with it always, never, or now and
then.

The two ends of verification, with drafts from both sources mixed, at every exit: everything
accepted, everything rolled back.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from engine.plan import RowResult
from engine.worker.exit_look import Arrival
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

    def look_up(self, rows: Sequence[Row], estimate: StepEstimate) -> None:
        """See `Drafter.look_up`: runs of no to three tokens."""
        for row in rows:
            if not row.num_waiting:
                continue
            for _ in range(row.newest_position * 5 % 4):
                if row.num_room:
                    self._append(row, None)

    def look(
        self,
        exit_index: int,
        arrivals: Sequence[Arrival],
        hidden: Tensor,
        estimate: StepEstimate,
    ) -> None:
        """See `Drafter.look`. Every position has its exit, or none; at the first exit some of the
        tokens just looked up are given up.
        """
        for arrival in arrivals:
            row = arrival.row
            if exit_index == 0 and row.newest_position % 5 == 0:
                row.cut(max(0, len(row.drafts) - min(2, len(arrival.places) - 1)))
            exit_of_position = (row.newest_position * 7 + 10) % (len(self.exit_layers) + 1)
            if exit_of_position == exit_index and row.num_room:
                self._append(row, exit_index)

    def note_segment(
        self, segment: int, num_tokens: int, seconds: float, estimate: StepEstimate
    ) -> None:
        """See `Drafter.note_segment`: a script counts no costs."""

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """See `Drafter.learn`: there is nothing to learn from a script."""

    def _append(self, row: Row, exit_index: int | None) -> None:
        """One more draft, if the script goes so far."""
        start = row.state.start
        known = self._outputs[tuple(start.token_ids[: start.num_prompt_tokens])]
        position = len(row.state.token_ids) + len(row.drafts)
        if position < len(known):
            token_id = self._token(known[position], position)
            row.drafts.append(Draft(token_id, exit_index, confidence=0.9, survival=0.9))

    def _token(self, token_id: int, position: int) -> int:
        is_wrong = self._agreement == "never" or (
            self._agreement == "sometimes" and position % 3 == 0
        )
        return (token_id + 1) % self._vocab_size if is_wrong else token_id
