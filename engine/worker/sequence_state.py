"""What the worker caches of a sequence: its tokens and where they stood before, how to sample them,
and the last hidden state its exit heads read.

Everything here comes from `SequenceStart` and the worker's own results, so it can be rebuilt at any
time.
"""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from engine.plan import SequenceStart
from engine.worker.lookup import Lookup
from engine.worker.structure import StructureState


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
        self.lookup = Lookup(self.token_ids)
        self._output_counts = Counter(self.token_ids[start.num_prompt_tokens :])
        self._prompt_ids = set(start.token_ids[: start.num_prompt_tokens])

    @property
    def sequence_id(self) -> int:
        """The scheduler's id."""
        return self.start.sequence_id

    @property
    def is_greedy(self) -> bool:
        """Whether tokens are chosen without noise."""
        return self.start.temperature == 0.0

    def num_output_tokens(self, num_drafts: int = 0) -> int:
        """Output tokens known, drafts before the position included."""
        return len(self.token_ids) - self.start.num_prompt_tokens + num_drafts

    def append(self, token_ids: Sequence[int]) -> None:
        """Commit tokens that verification accepted."""
        self.token_ids.extend(token_ids)
        self._output_counts.update(token_ids)
        if self.structure is not None:
            self.structure.append(token_ids)

    def output_counts(self, drafts: Sequence[int] = ()) -> Counter[int]:
        """How often each token occurs in the output, drafts before the position included."""
        return self._output_counts + Counter(drafts) if drafts else self._output_counts

    def seen_ids(self, drafts: Sequence[int] = ()) -> set[int]:
        """Every token of prompt and output, drafts before the position included."""
        return self._prompt_ids | set(self._output_counts) | set(drafts)
