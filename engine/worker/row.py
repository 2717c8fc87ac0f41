"""One sequence inside one step: its plan, its state and its pending drafts. A row lives as long as
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
    """A pending token, looked up or predicted at an exit, that is not verified yet."""

    token_id: int
    exit_index: int | None  # None: looked up, before any layer
    confidence: float
    survival: float  # P(this draft and all before it are accepted), as the policy saw it
    chance: Chance | None = None  # kept while a head may still screen the draft


class Alternate(NamedTuple):
    """A second candidate for the place of a draft.

    It shares the drafts before that place and has a spare slot. Nothing follows it.
    """

    token_id: int
    place: int  # number of drafts before it
    exit_index: int
    confidence: float
    survival: float  # P(the drafts before it are accepted, and then this token)
    spare: int  # index of its slot among the step's spare slots


class Guess(NamedTuple):
    """What a source of drafts expected after a run of drafts, whether or not it was drafted."""

    path: tuple[int, ...]  # the run of drafts
    token_id: int
    chance: Chance


class Row:
    """A sequence in the step.

    Pending tokens are the newest known one, then the drafts after it, then the alternates.
    """

    def __init__(self, plan: RowPlan, state: SequenceState) -> None:
        self.plan = plan
        self.state = state
        self.drafts: list[Draft] = []
        self.num_entered = 0  # known tokens and drafts that have entered segment 0
        self.alternates: list[Alternate] = []
        self.num_aside = 0  # alternates that have entered segment 0, which are the first ones
        self.taken: Alternate | None = None  # the alternate that verification accepted
        # [E] each; number j is the last hidden state of the token before pending token j. The first
        # is known, the others are heads' estimates. Empty if it is not known: then no head drafts.
        self.estimates: list[Tensor] = [] if state.last_hidden is None else [state.last_hidden]
        self.guesses: list[Guess] = []  # in the order they were made

    @property
    def newest_position(self) -> int:
        """Position of the newest token that has entered segment 0."""
        return self.plan.start + self.num_entered - 1

    @property
    def num_waiting(self) -> int:
        """Tokens that have not entered segment 0 yet, without alternates."""
        return self.plan.num_tokens + len(self.drafts) - self.num_entered

    @property
    def is_waiting(self) -> bool:
        """Whether any of its tokens, alternates included, has not entered segment 0 yet."""
        return self.num_waiting > 0 or self.num_aside < len(self.alternates)

    def has(self, ref: TokenRef) -> bool:
        """Whether a token that has entered segment 0 has not been dropped since."""
        if ref.spare is None:
            return ref.position <= self.newest_position
        return any(alternate.spare == ref.spare for alternate in self.alternates)

    @property
    def first_pending(self) -> int:
        """Position of the newest known token, the first after which a token is chosen."""
        return self.plan.start + self.plan.num_tokens - 1

    @property
    def num_pending(self) -> int:
        """Number of positions that the last pass chooses tokens for; see `sample_points`."""
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
        """Drafts that may still follow the newest one; none follows an end of sequence."""
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
        """Drop all but the oldest `num_drafts` drafts, with their alternates and estimates.

        No alternate may be waiting for segment 0.
        """
        del self.drafts[num_drafts:]
        self.alternates = [a for a in self.alternates if a.place < num_drafts]
        self.num_aside = min(self.num_aside, len(self.alternates))
        del self.estimates[num_drafts + 2 :]
        self.num_entered = min(self.num_entered, self.plan.num_tokens + num_drafts)

    def take_waiting(self) -> list[int]:
        """Return the ids of the tokens that wait for segment 0, and count them as entered."""
        start, known = self.plan.start, self.plan.num_tokens
        ids = self.state.token_ids[start + self.num_entered : start + known]
        ids += [draft.token_id for draft in self.drafts[max(0, self.num_entered - known) :]]
        self.num_entered = known + len(self.drafts)
        return ids

    def pending_refs(self, index: int) -> list[TokenRef]:
        """Return the tokens that precede `sample_points`, in their order.

        Args:
            index: The row's index in the step.
        """
        if not self.plan.is_decoding:
            return []
        first = self.first_pending
        run = [TokenRef(index, first + i) for i in range(len(self.drafts) + 1)]
        return run + [TokenRef(index, self.position_of(a), a.spare) for a in self.alternates]

    def take_aside(self) -> list[Alternate]:
        """Return the alternates that wait for segment 0, and count them as entered."""
        waiting = self.alternates[self.num_aside :]
        self.num_aside = len(self.alternates)
        return waiting

    def alternate(self, place: int, token_id: int) -> Alternate | None:
        """Return the alternate with this token for a place, if there is one."""
        there = (a for a in self.alternates if a.place == place)
        return next((a for a in there if a.token_id == token_id), None)

    def position_of(self, alternate: Alternate) -> int:
        """Return the position that an alternate would have in the sequence."""
        return self.first_pending + 1 + alternate.place

    def sample_points(self) -> Sequence[SamplePoint]:
        """Return the positions that the last pass chooses tokens for.

        They are those after the newest known token, every draft, and every alternate.
        """
        if not self.plan.is_decoding:
            return []
        ids = self.draft_ids
        runs = [ids[:count] for count in range(len(ids) + 1)]
        runs += [[*ids[: a.place], a.token_id] for a in self.alternates]
        return [SamplePoint(self.state, run) for run in runs]

    def sources(self, num_tokens: int) -> list[int]:
        """Return the indices of the pending tokens after which the row's new tokens were chosen."""
        if self.taken is None:
            return list(range(num_tokens))
        aside = 1 + len(self.drafts) + self.alternates.index(self.taken)
        return [*range(num_tokens - 1), aside]
