"""Drafts come to rows and go, and what the step promises with them."""

from collections.abc import Sequence

from engine.worker.exit_policy import StepEstimate
from engine.worker.row import Draft, Row


def append(row: Row, drafts: Sequence[Draft], estimate: StepEstimate) -> None:
    """Draft these behind what is pending."""
    row.drafts += drafts
    estimate.num_tokens += len(drafts)
    estimate.expected_tokens += sum(draft.survival for draft in drafts)


def cut(row: Row, num_drafts: int, estimate: StepEstimate) -> None:
    """Forget all drafts but the oldest so many."""
    lost = row.drafts[num_drafts:]
    row.cut(num_drafts)
    estimate.num_tokens -= len(lost)
    estimate.expected_tokens -= sum(draft.survival for draft in lost)
