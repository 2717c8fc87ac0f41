"""Drafters that know the plain output, so that which of their drafts are right can be scripted.

`ScriptedDrafter` covers the extremes of verification, with drafts from look-ups and from every exit
mixed: everything accepted, everything rolled back, or only second candidates accepted. Other
scripted drafters build on `Script`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor

from engine.plan import RowResult
from engine.worker.exit_evaluator import Arrival
from engine.worker.row import Alternate, Draft, Row
from engine.worker.step_estimate import StepEstimate

Agreement = Literal["always", "never", "sometimes", "aside"]
_AGREEMENTS: Mapping[Agreement, Callable[[int], bool]] = {
    "always": lambda _: True,
    "never": lambda _: False,
    "sometimes": lambda position: position % 3 != 0,
    "aside": lambda _: False,
}


class Script:
    """The base of scripted drafters: `engine.worker.drafter.Drafter` without `evaluate_exit`.

    Attributes:
        outputs: For each prompt, the tokens of the prompt followed by its plain output.
    """

    def __init__(
        self,
        exit_layers: Sequence[int],
        outputs: Mapping[tuple[int, ...], Sequence[int]],
        vocab_size: int,
        is_right: Callable[[int], bool],
    ) -> None:
        """
        Args:
            is_right: Whether the draft for a position is to be the token of the plain output.
        """
        self.exit_layers = list(exit_layers)
        self.outputs = outputs
        self._vocab_size = vocab_size
        self._is_right = is_right

    def begin(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.begin`."""
        return any(row.is_draftable for row in rows)

    def look_up(self, rows: Sequence[Row], estimate: StepEstimate) -> None:
        """See `Drafter.look_up`: nothing is looked up."""

    def will_evaluate_exits(self, rows: Sequence[Row], estimate: StepEstimate) -> bool:
        """See `Drafter.will_evaluate_exits`."""
        return True

    def note_segment(
        self, segment: int, num_tokens: int, seconds: float, estimate: StepEstimate
    ) -> None:
        """See `Drafter.note_segment`: a script counts no costs."""

    def note_pass(self, num_tokens: int, estimate: StepEstimate, *, is_ahead: bool) -> None:
        """See `Drafter.note_pass`."""

    def may_draft_next(self, rows: Sequence[Row]) -> bool:
        """See `Drafter.may_draft_next`."""
        return any(row.is_draftable for row in rows)

    def catch_up(self) -> None:
        """See `Drafter.catch_up`: there is nothing to catch up on."""

    def wants_states(self, rows: Sequence[Row]) -> bool:
        """See `Drafter.wants_states`."""
        return True

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """See `Drafter.learn`: there is nothing to learn from a script."""

    def append(self, row: Row, exit_index: int | None) -> None:
        """Append one more draft to a row, unless the script has ended."""
        position = len(row.state.token_ids) + len(row.drafts)
        token_id = self._token_at(row, position, 0 if self._is_right(position) else 1)
        if token_id is not None:
            row.drafts.append(Draft(token_id, exit_index, confidence=0.9, survival=0.9))

    def _token_at(self, row: Row, position: int, error: int) -> int | None:
        """Return the plain output's token at a position plus `error`, or None after its end."""
        start = row.state.start
        known = self.outputs[tuple(start.token_ids[: start.num_prompt_tokens])]
        return (known[position] + error) % self._vocab_size if position < len(known) else None


class ScriptedDrafter(Script):
    """A drafter that is right always, never or sometimes, and reads no hidden states.

    Unless it is always right it also gives some drafts an alternate (second candidate): with
    "sometimes" that is right where the draft is wrong, with "aside" always, with "never" never.
    """

    def __init__(
        self,
        exit_layers: Sequence[int],
        outputs: Mapping[tuple[int, ...], Sequence[int]],
        agreement: Agreement,
        vocab_size: int,
    ) -> None:
        super().__init__(exit_layers, outputs, vocab_size, _AGREEMENTS[agreement])
        self._agreement = agreement

    def look_up(self, rows: Sequence[Row], estimate: StepEstimate) -> None:
        """See `Drafter.look_up`; drafts runs of up to three tokens."""
        for row in rows:
            if not row.num_waiting:
                continue
            for _ in range(row.newest_position * 5 % 4):
                if row.num_room:
                    self.append(row, None)

    def evaluate_exit(
        self,
        exit_index: int,
        arrivals: Sequence[Arrival],
        hidden: Tensor,
        estimate: StepEstimate,
    ) -> None:
        """See `Drafter.evaluate_exit`.

        A position determines the exit at which it drafts, if any. At the first exit some drafts
        that were just looked up are dropped.
        """
        for arrival in arrivals:
            row = arrival.row
            if exit_index == 0 and row.newest_position % 5 == 0:
                row.cut(max(0, len(row.drafts) - min(2, len(arrival.places) - 1)))
            exit_of_position = (row.newest_position * 7 + 10) % (len(self.exit_layers) + 1)
            if exit_of_position == exit_index and row.num_room:
                self.append(row, exit_index)
            if self._agreement != "always" and estimate.num_spare and row.drafts:
                self._put_aside(row, exit_index, estimate)

    def _put_aside(self, row: Row, exit_index: int, estimate: StepEstimate) -> None:
        """Give one of the row's drafts an alternate, unless it has one."""
        place = row.newest_position * 3 % len(row.drafts)
        position = len(row.state.token_ids) + place
        is_right = self._agreement != "never" and not self._is_right(position)
        token_id = self._token_at(row, position, 0 if is_right else 2)
        if token_id is not None and all(alternate.place != place for alternate in row.alternates):
            estimate.num_spare -= 1
            aside = Alternate(token_id, place, exit_index, 0.5, 0.1, estimate.num_spare)
            row.alternates.append(aside)
