"""Where a token is to be chosen, and among which columns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.worker.sequence_state import SequenceState


@dataclass(frozen=True, slots=True)
class SamplePoint:
    """A position whose token is to be chosen."""

    state: SequenceState
    drafts: Sequence[int]  # pending tokens of the sequence before this position

    @property
    def position(self) -> int:
        """Index in its sequence of the token to choose."""
        return len(self.state.token_ids) + len(self.drafts)

    @property
    def is_too_short(self) -> bool:
        """Whether min_tokens forbids an end here."""
        return self.state.num_output_tokens(len(self.drafts)) < self.state.start.min_tokens

    @property
    def allowed(self) -> Tensor | None:
        """[V] bool on the CPU: what the structure allows here; None: it has no say."""
        structure = self.state.structure
        if structure is None:
            return None
        puts_off_end = self.is_too_short or self.state.start.ignore_eos
        return structure.allowed(self.drafts, puts_off_end=puts_off_end)


class ReducedVocabulary:
    """The columns of an exit head's logits."""

    def __init__(self, token_ids: Tensor, columns: Tensor) -> None:
        """Args:
        token_ids: [V'] int32.
        columns: [V] int64, -1 outside.
        """
        self.token_ids = token_ids
        self._columns: list[int] = columns.tolist()

    @property
    def vocab_size(self) -> int:
        """V, of the whole vocabulary."""
        return len(self._columns)

    def column(self, token_id: int) -> int | None:
        """A token's column, if it has one."""
        column = self._columns[token_id]
        return None if column < 0 else column


def columns_of(
    items: Iterable[tuple[int, float]], reduced: ReducedVocabulary | None
) -> list[tuple[int, float]]:
    """(token id, value) pairs as (column, value), without those that have no column."""
    if reduced is None:
        return list(items)
    placed = ((reduced.column(token_id), value) for token_id, value in items)
    return [(column, value) for column, value in placed if column is not None]
