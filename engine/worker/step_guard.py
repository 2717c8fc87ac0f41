"""Repeats a step that runs out of memory in smaller batches, so that only rows that do not fit even
alone fail.

This is sound because a step that raises has changed no state, the KV entries it wrote are written
again with the same values, and a token's result does not depend on the other rows of the batch.
"""

import gc
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from engine.plan import RowPlan, RowResult
from engine.worker.decode_step import DecodeStep
from engine.worker.device_errors import is_out_of_memory
from engine.worker.sequence_state import SequenceState

logger = logging.getLogger(__name__)


class StepGuard:
    """Runs steps like the `DecodeStep` it wraps."""

    def __init__(self, step: DecodeStep) -> None:
        self._step = step

    def run(self, plans: Sequence[RowPlan], states: Sequence[SequenceState]) -> list[RowResult]:
        """See `DecodeStep.run`; rows that do not fit into memory even alone have an error."""
        try:
            return self._step.run(plans, states)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("out of memory in a step of %d rows: trying smaller ones", len(plans))
        # Outside the handler, because the exception holds the failed step's tensors.
        _free_memory()
        if len(plans) > 1:
            middle = len(plans) // 2
            return [
                *self.run(plans[:middle], states[:middle]),
                *self.run(plans[middle:], states[middle:]),
            ]
        if plans[0].max_draft_tokens:
            return self.run([replace(plans[0], max_draft_tokens=0)], states)
        error_text = "the request does not fit the memory"
        return [RowResult(sequence_id=plans[0].sequence_id, token_ids=[], error=error_text)]


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
