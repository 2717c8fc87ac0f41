"""What the worker caches of a sequence: its tokens and an index of them, how to sample, and the
last hidden state that exit heads read.

Everything here comes from `SequenceStart` and the worker's own results, so it can be rebuilt at any
time.
"""

from collections.abc import Sequence

from torch import Tensor

from engine.model.noise import NoiseKeys
from engine.plan import SequenceStart
from engine.request import SamplingParams
from engine.worker.prompt_lookup import PromptLookup
from engine.worker.structure import StructureState
from engine.worker.token_counts import TokenCounts
from engine.worker.token_wishes import TokenWishes


class SequenceState:
    """A sequence as the worker sees it.

    Attributes:
        token_ids: The known tokens.
        structure: The state of the request's structure after the known output.
        last_hidden: [E], the last layer's state of the newest computed token, which is the one
            before the newest known token; None if it was not kept.
        hidden_sum: [E] float64, the sum over the prompt so far, for pooling.
        noise_key: The key of the sampling noise, by position.
        counts: Token counts, if penalties need them.
    """

    def __init__(self, start: SequenceStart, structure: StructureState | None = None) -> None:
        self.start = start
        self.structure = structure
        self.token_ids: list[int] = list(start.token_ids)
        self.last_hidden: Tensor | None = None
        self.hidden_sum: Tensor | None = None
        self.sampling = sampling = start.sampling
        self.is_greedy = sampling.temperature == 0.0  # tokens are chosen without noise
        self.inverse_temperature = 0.0 if self.is_greedy else 1.0 / sampling.temperature
        self.noise_key = NoiseKeys(sampling.seed)
        self.lookup = PromptLookup(self.token_ids)
        self.wishes = TokenWishes(start)
        self.counts: TokenCounts | None = None
        if _has_penalties(sampling):
            count = start.num_prompt_tokens
            self.counts = TokenCounts(self.token_ids[:count], self.token_ids[count:])

    @property
    def sequence_id(self) -> int:
        """The scheduler's id."""
        return self.start.sequence_id

    @property
    def is_ending(self) -> bool:
        """Whether the next token is the last one, unless the sequence ends before."""
        return len(self.token_ids) + 1 >= self.start.last_len

    def num_output_tokens(self, num_drafts: int = 0) -> int:
        """Return the number of known output tokens plus `num_drafts`."""
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
