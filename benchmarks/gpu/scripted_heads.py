"""Drafts whose acceptance is chosen: the heads are evaluated for their cost, the tokens come from a
script of what plain decoding brought.
"""

import zlib
from collections.abc import Mapping, Sequence

from torch import Tensor

from engine.model.exit_head import ExitHeads
from engine.plan import RowResult
from engine.worker.exit_look import Arrival, ExitLook
from engine.worker.exit_policy import StepEstimate
from engine.worker.row import Draft, Row
from engine.worker.sampler import Sampler

_ROUND = 1 << 16


class ScriptedHeads:
    """Implements `engine.worker.drafter.Drafter`."""

    def __init__(self, heads: ExitHeads, sampler: Sampler, vocab_size: int) -> None:
        self.exit_layers = heads.exit_layers
        self.outputs: Mapping[tuple[int, ...], Sequence[int]] = {}  # prompt -> it and its output
        self.acceptance = 1.0  # share of drafts that are right
        self.coverage = 1.0  # share of positions at which the head is sure enough to draft
        self._look = ExitLook(heads, sampler)
        self._vocab_size = vocab_size

    def look_up(self, rows: Sequence[Row], estimate: StepEstimate) -> None:
        """See `Drafter.look_up`: heads alone draft."""

    def look(
        self,
        exit_index: int,
        arrivals: Sequence[Arrival],
        hidden: Tensor,
        estimate: StepEstimate,
    ) -> None:
        """See `Drafter.look`."""
        able = [a for a in arrivals if a.row.num_room and a.row.estimates]
        if not able:
            return
        self._look.opinions(exit_index, able, hidden)
        for arrival in able:
            row = arrival.row
            token_id = self._token(row)
            if token_id is not None:
                row.drafts.append(Draft(token_id, exit_index, confidence=0.9, survival=0.9))

    def note_segment(
        self, segment: int, num_tokens: int, seconds: float, estimate: StepEstimate
    ) -> None:
        """See `Drafter.note_segment`: costs decide nothing here."""

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """See `Drafter.learn`."""

    def _token(self, row: Row) -> int | None:
        start, position = row.state.start, row.newest_position + 1
        known = self.outputs[tuple(start.token_ids[: start.num_prompt_tokens])]
        if position >= len(known) or _draw("sure", position) >= self.coverage:
            return None
        is_right = _draw("right", position) < self.acceptance
        return known[position] if is_right else (known[position] + 1) % self._vocab_size


def _draw(what: str, position: int) -> float:
    """The same number below 1 for the same position, as if drawn evenly."""
    return zlib.crc32(f"{what} {position}".encode()) % _ROUND / _ROUND
