"""Adds drafts to rows and removes them, and keeps the step's estimate up to date."""

from collections.abc import Sequence

from engine.worker.row import Draft, Row
from engine.worker.step_estimate import StepEstimate


def append(row: Row, drafts: Sequence[Draft], estimate: StepEstimate) -> None:
    """Add drafts after those that are pending."""
    row.drafts += drafts
    estimate.add(drafts)


def cut(row: Row, num_drafts: int, estimate: StepEstimate) -> None:
    """Forget all drafts but the oldest `num_drafts`."""
    estimate.remove(row.drafts[num_drafts:])
    row.cut(num_drafts)
