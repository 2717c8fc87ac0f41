"""The positions for which tokens are chosen, and the columns to choose among."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from engine.model.noise import SaltedIds
from engine.worker.sequence_state import SequenceState
from engine.worker.token_bits import TokenBits, has_token
from engine.worker.token_wishes import TokenValues


class SamplePoint(NamedTuple):
    """A position whose token is to be chosen."""

    state: SequenceState
    drafts: Sequence[int]  # pending tokens of the sequence before this position

    @property
    def position(self) -> int:
        """The position of the token to choose."""
        return len(self.state.token_ids) + len(self.drafts)

    @property
    def is_too_short(self) -> bool:
        """Whether min_tokens forbids the sequence to end here."""
        return self.state.num_output_tokens(len(self.drafts)) < self.state.sampling.min_tokens

    @property
    def allowed(self) -> TokenBits | None:
        """The allowed tokens that the structure permits here; None: there is no structure, or the
        position does not matter because a draft before it cannot be accepted.
        """
        structure = self.state.structure
        if structure is None:
            return None
        puts_off_end = self.is_too_short or self.state.sampling.ignore_eos
        listed = self.state.wishes.allowed(structure.vocab_size)
        return structure.allowed(self.drafts, puts_off_end=puts_off_end, listed=listed)

    def allows(self, token_id: int) -> bool:
        """Whether the structure, if any, allows a token here."""
        allowed = self.allowed
        return allowed is None or has_token(allowed, token_id)


class ReducedVocabulary:
    """The columns of an exit head's logits."""

    def __init__(self, token_ids: Tensor, columns: Tensor) -> None:
        """
        Args:
            token_ids: [V'] int32, the token of each column.
            columns: [V] int64, the column of each token; -1 outside the reduced vocabulary.
        """
        self.ids = SaltedIds.of(token_ids)
        self._columns = columns.cpu().numpy()

    @property
    def vocab_size(self) -> int:
        """The size V of the whole vocabulary."""
        return len(self._columns)

    def placed(self, asked: TokenValues) -> TokenValues:
        """Return values by column instead of token id, without tokens that have no column."""
        columns = self._columns[asked.ids]
        has_column = columns >= 0
        return TokenValues(columns[has_column], asked.values[has_column])
