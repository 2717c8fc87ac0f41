"""One sequence inside one step: its plan, its state, its pending drafts. Lives no longer than
the step.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from engine.plan import RowPlan
from engine.worker.chances import Chance
from engine.worker.forward_batch import TokenRef
from engine.worker.sample_point import SamplePoint
from engine.worker.sequence_state import SequenceState


class Draft(NamedTuple):
    """A pending token: looked up or predicted at an exit, not yet verified."""

    token_id: int
    exit_index: int | None  # None: looked up, before any layer
    confidence: float
    survival: float  # P(this draft and all before it are accepted), as the policy saw it
    chance: Chance | None = None  # of a draft that a head may still have a say in


class Alternate(NamedTuple):
    """A second candidate for the place of a draft. Nothing follows it; it shares the drafts before
    that place, and stands in a slot aside.
    """

    token_id: int
    place: int  # drafts before it
    exit_index: int
    confidence: float
    survival: float  # P(those are accepted, and this token is what follows)
    spare: int  # which of the step's spare slots; no other alternate has it


class Guess(NamedTuple):
    """What some source expected behind a run of drafts, drafted or not."""

    path: tuple[int, ...]  # those drafts
    token_id: int
    chance: Chance


class Row:
    """A sequence in the step.

    Pending tokens are the newest known one, the drafts behind it, and then the alternates.
    """

    def __init__(self, plan: RowPlan, state: SequenceState) -> None:
        self.plan = plan
        self.state = state
        self.drafts: list[Draft] = []
        self.num_entered = 0  # tokens of the step that have entered segment 0: known, then drafts
        self.alternates: list[Alternate] = []
        self.num_aside = 0  # alternates that have entered segment 0: the first so many
        self.taken: Alternate | None = None  # the one that verification found right
        # [E] each: the last hidden state of the token before pending token j: the first one is
        # known, the others are heads' estimates. Empty where it is not known: heads do not draft.
        self.estimates: list[Tensor] = [] if state.last_hidden is None else [state.last_hidden]
        self.guesses: list[Guess] = []  # in the order they were made

    @property
    def newest_position(self) -> int:
        """Position of the newest token that has entered segment 0."""
        return self.plan.start + self.num_entered - 1

    @property
    def num_waiting(self) -> int:
        """Tokens that have not entered segment 0 yet, alternates apart."""
        return self.plan.num_tokens + len(self.drafts) - self.num_entered

    @property
    def is_waiting(self) -> bool:
        """Whether anything of it has not entered segment 0 yet."""
        return self.num_waiting > 0 or self.num_aside < len(self.alternates)

    def has(self, ref: TokenRef) -> bool:
        """Whether a token that has entered segment 0 is still wanted."""
        if ref.spare is None:
            return ref.position <= self.newest_position
        return any(alternate.spare == ref.spare for alternate in self.alternates)

    @property
    def first_pending(self) -> int:
        """Position of the newest known token, the first whose logits choose a token."""
        return self.plan.start + self.plan.num_tokens - 1

    @property
    def num_pending(self) -> int:
        """Positions that the last pass chooses tokens for; see `sample_points`."""
        return 1 + len(self.drafts) + len(self.alternates) if self.plan.is_decoding else 0

    @property
    def is_draftable(self) -> bool:
        """Whether this row may draft in this step at all."""
        return (
            self.plan.only_decodes
            and self.plan.max_draft_tokens > 0
            and self.state.start.early_exit.enabled
        )

    @property
    def num_room(self) -> int:
        """Drafts that still fit behind the newest one; nothing follows an end of sequence."""
        if not self.is_draftable:
            return 0
        if self.drafts and self.drafts[-1].token_id in self.state.start.stop_token_ids:
            return 0
        return self.plan.max_draft_tokens - len(self.drafts)

    @property
    def survival(self) -> float:
        """P(all pending drafts are accepted)."""
        return self.drafts[-1].survival if self.drafts else 1.0

    @property
    def draft_ids(self) -> list[int]:
        """Pending token ids, oldest first."""
        return [draft.token_id for draft in self.drafts]

    def cut(self, num_drafts: int) -> None:
        """Forget all drafts but the oldest so many, and what was derived from them; no alternate
        of theirs may wait for segment 0.
        """
        del self.drafts[num_drafts:]
        self.alternates = [a for a in self.alternates if a.place < num_drafts]
        self.num_aside = min(self.num_aside, len(self.alternates))
        del self.estimates[num_drafts + 2 :]
        self.num_entered = min(self.num_entered, self.plan.num_tokens + num_drafts)

    def take_waiting(self) -> list[int]:
        """Ids of the tokens that wait for segment 0; they have entered it now."""
        start, known = self.plan.start, self.plan.num_tokens
        ids = self.state.token_ids[start + self.num_entered : start + known]
        ids += [draft.token_id for draft in self.drafts[max(0, self.num_entered - known) :]]
        self.num_entered = known + len(self.drafts)
        return ids

    def pending_refs(self, index: int) -> list[TokenRef]:
        """The tokens behind `sample_points`, in their order.

        Args:
            index: The row's, in the step.
        """
        if not self.plan.is_decoding:
            return []
        first = self.first_pending
        run = [TokenRef(index, first + i) for i in range(len(self.drafts) + 1)]
        return run + [TokenRef(index, self.position_of(a), a.spare) for a in self.alternates]

    def take_aside(self) -> list[Alternate]:
        """The alternates that wait for segment 0; they have entered it now."""
        waiting = self.alternates[self.num_aside :]
        self.num_aside = len(self.alternates)
        return waiting

    def alternate(self, place: int, token_id: int) -> Alternate | None:
        """The one with this token for a place, if there is one."""
        there = (a for a in self.alternates if a.place == place)
        return next((a for a in there if a.token_id == token_id), None)

    def position_of(self, alternate: Alternate) -> int:
        """Where it would stand in the sequence."""
        return self.first_pending + 1 + alternate.place

    def sample_points(self) -> Sequence[SamplePoint]:
        """The positions the last pass chooses tokens for: after the newest known token, after every
        draft, and after every alternate.
        """
        if not self.plan.is_decoding:
            return []
        ids = self.draft_ids
        runs = [ids[:count] for count in range(len(ids) + 1)]
        runs += [[*ids[: a.place], a.token_id] for a in self.alternates]
        return [SamplePoint(self.state, run) for run in runs]

    def sources(self, num_tokens: int) -> list[int]:
        """Indices of the pending tokens behind which so many accepted tokens were chosen."""
        if self.taken is None:
            return list(range(num_tokens))
        aside = 1 + len(self.drafts) + self.alternates.index(self.taken)
        return [*range(num_tokens - 1), aside]
