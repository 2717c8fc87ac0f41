"""A drafter with a chosen acceptance rate.

The heads are evaluated only for their cost; the drafts come from the output of plain decoding.
"""

import zlib
from collections.abc import Sequence

from torch import Tensor

from benchmarks.scripted import Script
from engine.model.exit_head import ExitHeads
from engine.worker.exit_evaluator import Arrival, ExitEvaluator
from engine.worker.sampler import Sampler
from engine.worker.step_estimate import StepEstimate

_ROUND = 1 << 16


class ScriptedHeads(Script):
    """Drafts from the script wherever a head is evaluated and sure enough; see `Script`."""

    def __init__(self, heads: ExitHeads, sampler: Sampler, vocab_size: int) -> None:
        super().__init__(
            heads.exit_layers,
            {},
            vocab_size,
            is_right=lambda position: _draw("right", position) < self.acceptance,
        )
        self.acceptance = 1.0  # share of drafts that are right
        self.coverage = 1.0  # share of positions where the head counts as sure enough to draft
        self._evaluator = ExitEvaluator(heads, sampler)

    def evaluate_exit(
        self,
        exit_index: int,
        arrivals: Sequence[Arrival],
        hidden: Tensor,
        estimate: StepEstimate,
    ) -> None:
        """See `Drafter.evaluate_exit`."""
        able = [a for a in arrivals if a.row.num_room and a.row.estimates]
        if not able:
            return
        self._evaluator.opinions(exit_index, able, hidden)
        for arrival in able:
            if _draw("sure", arrival.row.newest_position + 1) < self.coverage:
                self.append(arrival.row, exit_index)


def _draw(what: str, position: int) -> float:
    """Return a pseudo-random number in [0, 1), always the same one for a position."""
    return zlib.crc32(f"{what} {position}".encode()) % _ROUND / _ROUND
