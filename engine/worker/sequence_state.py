"""What the worker caches of a sequence: its tokens and where they stood before, how to sample them,
and the last hidden state its exit heads read.

Everything here comes from `SequenceStart` and the worker's own results, so it can be rebuilt at any
time.
"""

from collections.abc import Sequence

from torch import Tensor

from engine.model.noise import NoiseKeys
from engine.plan import SequenceStart
from engine.request import SamplingParams
from engine.worker.lookup import Lookup
from engine.worker.structure import StructureState
from engine.worker.token_counts import TokenCounts
from engine.worker.token_wishes import TokenWishes


class SequenceState:
    """A sequence as the worker sees it.

    `token_ids` are the known tokens; `last_hidden` is the last layer's state of the newest computed
    token (the one before the newest known), None before the first result.
    """

    def __init__(self, start: SequenceStart, structure: StructureState | None = None) -> None:
        self.start = start
        self.structure = structure  # stands behind the known output
        self.token_ids: list[int] = list(start.token_ids)
        self.last_hidden: Tensor | None = None  # [E]
        self.hidden_sum: Tensor | None = None  # [E] float64: of the prompt so far, to be pooled
        self.sampling = sampling = start.sampling
        self.is_greedy = sampling.temperature == 0.0  # tokens are chosen without noise
        self.inverse_temperature = 0.0 if self.is_greedy else 1.0 / sampling.temperature
        self.noise_key = NoiseKeys(sampling.seed)  # by position
        self.lookup = Lookup(self.token_ids)
        self.wishes = TokenWishes(start)
        self.counts: TokenCounts | None = None  # where penalties ask for them
        if _has_penalties(sampling):
            count = start.num_prompt_tokens
            self.counts = TokenCounts(self.token_ids[:count], self.token_ids[count:])

    @property
    def sequence_id(self) -> int:
        """The scheduler's id."""
        return self.start.sequence_id

    @property
    def is_ending(self) -> bool:
        """Whether the next token is its last one at the latest."""
        return len(self.token_ids) + 1 >= self.start.last_len

    def num_output_tokens(self, num_drafts: int = 0) -> int:
        """Output tokens known, drafts before the position included."""
        return len(self.token_ids) - self.start.num_prompt_tokens + num_drafts

    def append(self, token_ids: Sequence[int]) -> None:
        """Commit tokens that verification accepted."""
        self.token_ids.extend(token_ids)
        if self.counts is not None:
            self.counts.append(token_ids)
        if self.structure is not None:
            self.structure.append(token_ids)


def _has_penalties(sampling: SamplingParams) -> bool:
    return bool(
        sampling.repetition_penalty != 1.0
        or sampling.frequency_penalty
        or sampling.presence_penalty
    )
