"""What crosses to the worker and back: `StepPlan` out, `StepResult` in, `WorkerInfo` once at start.

Frozen data of ints, floats, strings and lists only (msgspec encodes them as they are, see
`wire.py`), no torch. The worker keeps per-sequence state only as a cache: `SequenceStart` carries
all that is needed to rebuild it, so a lost worker is the same as preempting every sequence.

One step's token axis for a row, positions:

    [ computed by earlier steps | start .. start + num_tokens | drafts )
"""

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from engine.policy_reason import PolicyReport
from engine.request import (
    EarlyExitOptions,
    ExitRecord,
    SamplingParams,
    Structure,
    TokenLogprobs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStart:
    """Introduces a sequence to the worker: a new one, or one whose state it has lost."""

    sequence_id: int
    token_ids: list[int]  # all known tokens: prompt, then output so far
    num_prompt_tokens: int  # penalties and min_tokens count output from here
    sampling: SamplingParams  # a structure in it is approved
    early_exit: EarlyExitOptions
    stop_token_ids: list[int]  # every id that ends it, eos included; masked until min_tokens
    last_len: int  # known tokens with which it ends at the latest
    num_prompt_logprobs: int | None = None  # still wanted for every prompt token but the first
    pooling: Literal["mean", "last"] | None = None  # still wanted: one vector for the prompt


@dataclass(slots=True)  # made for every token: frozen, or by keywords, it takes twice as long
class RowPlan:
    """One sequence's share of a step: compute known tokens [start, start + num_tokens)."""

    sequence_id: int
    start: int  # == the sequence's num_computed_tokens
    num_tokens: int
    block_table: list[int]  # covers start + num_tokens + max_draft_tokens positions at least
    max_draft_tokens: int  # 0: do not draft
    is_decoding: bool  # the last known token is among those computed, and a new one is sampled

    @property
    def only_decodes(self) -> bool:
        """Whether nothing of a prompt is computed along with the newest token."""
        return self.is_decoding and self.num_tokens == 1


@dataclass(slots=True, kw_only=True)  # made for every step: frozen, it takes twice as long
class StepPlan:
    """One step. `ended` is applied first, then `started`, then `rows` run as one batch."""

    step_id: int
    ended: list[int] = field(default_factory=list)
    started: list[SequenceStart] = field(default_factory=list)
    rows: list[RowPlan] = field(default_factory=list)


@dataclass(slots=True)  # made for every token, see `RowPlan`
class RowResult:
    """What a row produced. Accepted drafts first, the target's own token last."""

    sequence_id: int
    token_ids: list[int]  # empty where the row is not decoding; else num accepted + 1
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per token when asked for
    drafts: tuple[ExitRecord, ...] = ()  # of this step, accepted ones first
    # Of the prompt tokens after those computed in this step, when asked for.
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    embedding: list[float] | None = None  # [E], once the prompt is computed, when asked for
    error: str | None = None  # this row failed (NaN logits, an exception); no tokens then
    is_dead_end: bool = False  # it failed, as what the request asks for leaves no token
    is_corrupt: bool = False  # it failed, as what the model computed are no numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What heads that learn have done since the result before."""

    num_updates: int = 0  # of weights in training
    num_adopted: int = 0  # weights that serve from now on
    num_dropped: int = 0  # weights that serve no more, because they did worse
    seconds: float = 0.0
    # Shares of held-out drafts that weights were right about, in the last trial; 0 before any.
    candidate_agreement: float = 0.0
    serving_agreement: float = 0.0
    shipped_agreement: float = 0.0


@dataclass(slots=True, kw_only=True)  # made for every step, see `StepPlan`
class StepResult:
    """The outcome of a `StepPlan`; `rows` in the plan's order."""

    step_id: int
    rows: list[RowResult]
    duration_s: float = 0.0  # the worker's own time
    policy: PolicyReport = field(default_factory=PolicyReport)
    learning: Learning | None = None  # None: heads do not learn


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """Facts the worker reports once it is ready."""

    num_blocks: int
    block_size: int
    vocab_size: int
    num_layers: int
    hidden_size: int  # numbers in an embedding
    max_model_len: int  # tokens per sequence, prompt and output
    eos_token_ids: list[int]
    dtype: str
    device: str
    exit_layers: list[int] = field(default_factory=list)
    has_lookup: bool = False  # drafts from text that repeats
    max_draft_tokens: int = 0
    backend: str = ""  # which kernels compute: native, torch, cuda
    runs_ahead: bool = False  # passes may be launched before it is known who will want them


class Worker(Protocol):
    """The engine's view of the data plane. One step is in flight at most.

    One that was lost, or closed, can be started again; it knows nothing then.
    """

    async def start(self) -> WorkerInfo:
        """Load the model; returns when the first step can run. Any later start serves the same
        model with the same arithmetic as the first, and with as many blocks if they can be had.

        Raises:
            ModelLoadError: when the model or its heads cannot be served.
        """

    def execute(self, plan: StepPlan) -> Awaitable[StepResult]:
        """Run one step: its plan is on its way at once, its result is to be awaited.

        Raises:
            WorkerLost: by the result, when the worker is gone, hangs, or the step raised.
        """

    async def prepare(self, structure: Structure) -> None:
        """Have an approved structure ready before a sequence brings it, while steps go on.

        Returns when it is, or at once when the worker is gone: a sequence that brings a structure
        which is not ready has its step wait for it.
        """

    async def watch(self) -> None:
        """Wait for the worker's death; never returns while it lives.

        Raises:
            WorkerLost: when the worker is gone without having been closed.
        """

    async def close(self) -> None:
        """Stop the worker and wait until it is gone. Idempotent."""
