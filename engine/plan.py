"""What crosses to the worker and back: `StepPlan` out, `StepResult` in, `WorkerInfo` once at start.

These are plain data that msgspec encodes as they are (see `wire.py`), without tensors. The worker
keeps per-sequence state only as a cache: `SequenceStart` carries all that is needed to rebuild it,
so a lost worker is the same as preempting every sequence.

The positions of a row in one step:

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
    """Introduces a sequence to the worker: a new one, or one whose state it no longer has."""

    sequence_id: int
    token_ids: list[int]  # all known tokens: prompt, then output so far
    num_prompt_tokens: int  # penalties and min_tokens count output from here
    sampling: SamplingParams  # a structure in it is approved
    early_exit: EarlyExitOptions
    stop_token_ids: list[int]  # every id that ends it, eos included; masked until min_tokens
    last_len: int  # the number of known tokens at which it ends at the latest
    num_prompt_logprobs: int | None = None  # still wanted for every prompt token but the first
    pooling: Literal["mean", "last"] | None = None  # still wanted: one vector for the prompt


@dataclass(slots=True)  # made for every token: frozen or kw_only would take twice as long
class RowPlan:
    """A sequence's share of a step: it computes known tokens [start, start + num_tokens)."""

    sequence_id: int
    start: int  # == the sequence's num_computed_tokens
    num_tokens: int
    block_table: list[int]  # covers start + num_tokens + max_draft_tokens positions at least
    max_draft_tokens: int  # 0: do not draft
    is_decoding: bool  # the last known token is among those computed, and a new one is sampled

    @property
    def only_decodes(self) -> bool:
        """Whether only the newest token is computed, and nothing of a prompt before it."""
        return self.is_decoding and self.num_tokens == 1


@dataclass(slots=True, kw_only=True)  # made for every step: frozen would take twice as long
class StepPlan:
    """One step: `ended` is applied first, then `started`, then `rows` run as one batch."""

    step_id: int
    ended: list[int] = field(default_factory=list)  # sequence ids the worker may forget
    started: list[SequenceStart] = field(default_factory=list)
    rows: list[RowPlan] = field(default_factory=list)


@dataclass(slots=True)  # made for every token, see `RowPlan`
class RowResult:
    """What a row produced: its accepted drafts first, then the last layer's own token."""

    sequence_id: int
    token_ids: list[int]  # accepted drafts and one more; empty if the row is not decoding
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per token when asked for
    drafts: tuple[ExitRecord, ...] = ()  # of this step, accepted ones first
    # One per prompt token that follows a token computed in this step, when asked for.
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    embedding: list[float] | None = None  # [E], once the prompt is computed, when asked for
    error: str | None = None  # this row failed (NaN logits, an exception); no tokens then
    is_dead_end: bool = False  # it failed because of what the request asks for, see `DeadEnd`
    is_corrupt: bool = False  # it failed because the model computed NaN or infinity


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What learning exit heads have done since the previous result."""

    num_updates: int = 0  # training updates made
    num_adopted: int = 0  # trained weights put into service
    num_dropped: int = 0  # weights taken out of service because they did worse
    seconds: float = 0.0  # spent learning
    # Shares of held-out drafts that each set of weights got right in the last trial; 0 before any.
    candidate_agreement: float = 0.0
    serving_agreement: float = 0.0
    shipped_agreement: float = 0.0


@dataclass(slots=True, kw_only=True)  # made for every step, see `StepPlan`
class StepResult:
    """The outcome of a `StepPlan`; `rows` in the plan's order."""

    step_id: int
    rows: list[RowResult]
    duration_s: float = 0.0  # measured by the worker
    policy: PolicyReport = field(default_factory=PolicyReport)
    learning: Learning | None = None  # None: heads do not learn


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """Facts the worker reports once it is ready."""

    num_blocks: int
    block_size: int
    vocab_size: int
    num_layers: int
    hidden_size: int  # length of an embedding
    max_model_len: int  # tokens per sequence, prompt and output
    eos_token_ids: list[int]
    dtype: str  # of activations
    numbers: str  # dtype, and what weights are kept as if that is another; for people
    device: str
    exit_layers: list[int] = field(default_factory=list)
    has_lookup: bool = False  # whether it drafts by prompt look-up
    max_draft_tokens: int = 0  # per row and step; 0: nothing drafts
    backend: str = ""  # which kernels compute: native, torch, cuda
    runs_ahead: bool = False  # passes may be launched ahead of their plan


class Worker(Protocol):
    """The engine's view of the data plane. At most one step is in flight.

    A worker that was lost or closed can be started again; it then knows no sequence.
    """

    async def start(self) -> WorkerInfo:
        """Load the model and return when the first step can run.

        Any later start serves the same model with the same arithmetic as the first, and with as
        many blocks if there is memory for them.

        Raises:
            ModelLoadError: The model or its heads cannot be served.
        """

    def execute(self, plan: StepPlan) -> Awaitable[StepResult]:
        """Start one step; its plan is sent at once.

        Returns:
            The result, to be awaited.

        Raises:
            WorkerLost: When awaited: the worker is gone or hangs, or the step raised.
        """

    async def prepare(self, structure: Structure) -> None:
        """Compile an approved structure before a sequence needs it, while steps go on.

        Returns when that is done, or at once when the worker is gone. A sequence whose structure
        is not ready makes its step wait for it.
        """

    async def watch(self) -> None:
        """Wait for the worker's death; never returns while it lives.

        Raises:
            WorkerLost: The worker is gone without having been closed.
        """

    async def close(self) -> None:
        """Stop the worker and wait until it is gone. Idempotent."""
