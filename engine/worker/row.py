"""One sequence inside one step: its plan, its state, its pending drafts. Lives no longer than
the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from engine.plan import RowPlan
from engine.worker.sampler import SamplePoint
from engine.worker.sequence_state import SequenceState


@dataclass(frozen=True, slots=True)
class Draft:
    """A pending token: predicted at an exit, not yet verified."""

    token_id: int
    exit_index: int
    confidence: float
    survival: float  # P(this draft and all before it are accepted), as the policy saw it


@dataclass(slots=True)
class Row:
    """A sequence in the step."""

    plan: RowPlan
    state: SequenceState
    previous: Tensor | None  # [E]: last hidden, or its estimate, of the token before the newest
    drafts: list[Draft] = field(default_factory=list)

    @property
    def newest_position(self) -> int:
        """Position of the newest token, drafts included."""
        return self.plan.start + self.plan.num_tokens - 1 + len(self.drafts)

    @property
    def first_pending(self) -> int:
        """Position of the newest known token, the first whose logits choose a token."""
        return self.plan.start + self.plan.num_tokens - 1

    @property
    def is_draftable(self) -> bool:
        """Whether this row may draft in this step at all."""
        return (
            self.previous is not None
            and self.plan.is_decoding
            and self.plan.num_tokens == 1
            and self.plan.max_draft_tokens > 0
            and self.state.start.early_exit
        )

    @property
    def has_room(self) -> bool:
        """Whether one more draft fits behind the newest token; nothing follows an end of
        sequence.
        """
        if not self.is_draftable or len(self.drafts) >= self.plan.max_draft_tokens:
            return False
        return not self.drafts or self.drafts[-1].token_id not in self.state.start.stop_token_ids

    @property
    def survival(self) -> float:
        """P(all pending drafts are accepted)."""
        return self.drafts[-1].survival if self.drafts else 1.0

    @property
    def draft_ids(self) -> list[int]:
        """Pending token ids, oldest first."""
        return [draft.token_id for draft in self.drafts]

    def sample_points(self) -> Sequence[SamplePoint]:
        """The positions the last pass chooses tokens for: after the newest known token and after
        every draft.
        """
        if not self.plan.is_decoding:
            return []
        ids = self.draft_ids
        return [SamplePoint(self.state, ids[:count]) for count in range(len(ids) + 1)]
