"""Rows of one step as a drafter sees them, before any draft."""

from dataclasses import replace

import torch
from tiny_model import sequence_start

from engine.plan import RowPlan
from engine.worker.row import Row
from engine.worker.sequence_state import SequenceState
from engine.worker.step_estimate import StepEstimate

REPETITIVE = [7, 8, 9, 10, 11, 12] * 3


def row_of(token_ids: list[int], **options: object) -> Row:
    """A decoding row before any draft."""
    state = SequenceState(sequence_start(0, token_ids, **options))
    state.last_hidden = torch.ones(48)
    plan = RowPlan(
        sequence_id=0,
        start=len(token_ids) - 1,
        num_tokens=1,
        block_table=[0],
        max_draft_tokens=6,
        is_decoding=True,
    )
    return Row(plan, state)


def prompt_of(token_ids: list[int]) -> Row:
    """A row whose prompt the step computes, with the first token after it."""
    row = row_of(token_ids)
    row.plan = replace(row.plan, start=0, num_tokens=len(token_ids))
    return row


def estimate() -> StepEstimate:
    return StepEstimate(num_tokens=1, expected_tokens=1.0)
