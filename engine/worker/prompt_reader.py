"""Reads what a request asks of its prompt: the tokens' log-probabilities, and an embedding.

Both are read from the last layer's states as the prompt is computed, chunk by chunk. Positions are
processed one by one in a fixed order of operations, so that neither chunks nor other rows change a
bit. Logits exist for a few positions at a time, however long the prompt.
"""

from dataclasses import dataclass, field

from torch import Tensor

from engine.model.decoder import Decoder
from engine.plan import RowPlan
from engine.request import TokenLogprobs
from engine.worker.logprobs import Wanted, read_logprobs
from engine.worker.sequence_state import SequenceState

_PIECE = 32  # positions whose logits exist at once


class NotNumbers(Exception):
    """Raised if the model computed NaN for a prompt."""


@dataclass(slots=True)
class PromptReading:
    """What was read from one chunk of a prompt."""

    # One per prompt token that follows a token of the chunk.
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    embedding: list[float] | None = None  # [E], in the chunk with the prompt's last token
    hidden_sum: Tensor | None = None  # [E] float64, sum over the prompt so far, for the mean


class PromptReader:
    """Reads prompts of one model. It is stateless: sums between chunks are kept by the sequence."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def read(self, plan: RowPlan, state: SequenceState, hidden: Tensor) -> PromptReading:
        """Read everything that is asked of the prompt tokens in the plan.

        Args:
            hidden: [plan.num_tokens, E], the last layer's states of the plan's tokens.

        Raises:
            NotNumbers: The model computed NaN.
        """
        reading = PromptReading()
        start, num_prompt = state.start, state.start.num_prompt_tokens
        if start.num_prompt_logprobs is not None:
            states = hidden[: num_prompt - 1 - plan.start]
            reading.logprobs = self._logprobs(plan, state, states, start.num_prompt_logprobs)
        if start.pooling is not None:
            self._pool(plan, state, hidden[: num_prompt - plan.start], reading)
        return reading

    def _logprobs(
        self, plan: RowPlan, state: SequenceState, hidden: Tensor, num_top: int
    ) -> list[TokenLogprobs]:
        """Return the log-probabilities of the token after each of the states [T, E]."""
        entries: list[TokenLogprobs] = []
        for first in range(0, len(hidden), _PIECE):
            logits = self._decoder.logits(hidden[first : first + _PIECE])
            if logits.isnan().any():
                raise NotNumbers
            after = plan.start + first + 1
            token_ids = state.token_ids[after : after + len(logits)]
            entries += read_logprobs(
                logits, [Wanted(place, i, num_top) for place, i in enumerate(token_ids)]
            )
        return entries

    def _pool(
        self, plan: RowPlan, state: SequenceState, hidden: Tensor, reading: PromptReading
    ) -> None:
        """Pool the states [T, E] of a chunk; the prompt's last token completes the embedding."""
        num_prompt = state.start.num_prompt_tokens
        has_last = plan.start + len(hidden) == num_prompt
        pooled: Tensor | None = None
        if state.start.pooling == "mean":
            total = state.hidden_sum
            for each in hidden:
                normed = self._decoder.normalize(each)
                total = normed if total is None else total + normed
            reading.hidden_sum = total
            pooled = None if total is None else total / num_prompt
        elif has_last:
            pooled = self._decoder.normalize(hidden[-1])
        if has_last and pooled is not None:
            if pooled.isnan().any():
                raise NotNumbers
            reading.embedding = pooled.tolist()


def wants_reading(plan: RowPlan, state: SequenceState) -> bool:
    """Whether the request asks for anything to be read from the prompt tokens in the plan."""
    start = state.start
    is_asked = start.num_prompt_logprobs is not None or start.pooling is not None
    return is_asked and plan.start < start.num_prompt_tokens
