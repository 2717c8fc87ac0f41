"""What crosses the engine's boundary: `GenerationRequest` in, `RequestOutput` out.

Plain frozen data, no behaviour beyond derived facts; knows neither HTTP nor torch. The server
builds requests (already validated), the engine builds outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from engine.policy_reason import PolicyReason, PolicyReport

DraftSource = Literal["head", "lookup"]

LOOKED_UP = -1  # stands for the exit layer of drafts made by prompt look-up


class FinishReason(StrEnum):
    """Why a request ended. Every request ends exactly once, with one of these."""

    STOP = "stop"  # end-of-sequence token, stop token id or stop string
    LENGTH = "length"  # max_tokens or the end of the context
    ABORT = "abort"  # the client went away or asked to stop
    ERROR = "error"  # the engine failed; `RequestOutput.error` says how
    DEAD_END = "dead_end"  # its own constraints allow no token, or take too long; see `error`


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """A structure that every token of the output has to follow, drafts included."""

    kind: Literal["json_object", "json_schema", "regex", "grammar", "structural_tag"]
    source: str = ""  # the schema, pattern, EBNF grammar or tag description; empty: any JSON object


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Defined on the last layer's logits, whatever the exits do."""

    temperature: float = 1.0  # 0 = greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    seed: int = 0  # the server draws one when the client gives none; unsigned 64 bits
    max_tokens: int = 16  # 0: the prompt is computed and the request ends with LENGTH
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: tuple[int, ...] = ()  # besides the model's own end-of-sequence ids
    ignore_eos: bool = False
    skip_special_tokens: bool = True  # leave control tokens out of the text
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to the logit
    allowed_token_ids: tuple[int, ...] = ()  # no others are chosen; empty: all are allowed
    num_logprobs: int | None = None  # top log-probabilities per token; 0 = the chosen one only
    num_prompt_logprobs: int | None = None  # num_logprobs for every prompt token but the first
    structure: Structure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyExitOptions:
    """Per-request control of early exits. Never changes the output, only how fast it comes."""

    enabled: bool = True
    threshold: float | None = None  # fixed confidence threshold; None: the policy decides
    max_draft_tokens: int | None = None  # None = the server's
    lookup: bool = True  # whether to draft by prompt look-up, too, not by exit heads alone
    return_trace: bool = False

    def under(self, policy: PolicyReport) -> PolicyReport:
        """Return what the policy's state means for a request with these options."""
        if policy.reason is PolicyReason.OFF:
            return policy
        if not self.enabled or self.max_draft_tokens == 0:
            return PolicyReport(reason=PolicyReason.OFF_BY_REQUEST)
        if self.threshold is not None:
            return PolicyReport(reason=PolicyReason.FIXED_THRESHOLD)
        return policy


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One completion to generate: a prompt of token ids and how to continue it."""

    request_id: str  # unique among open requests
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    early_exit: EarlyExitOptions = field(default_factory=EarlyExitOptions)
    pooling: Literal["mean", "last"] | None = None  # also answer with an embedding of the prompt
    priority: int = 0  # the lowest runs first, equal ones in order of arrival
    cache_salt: str = ""  # blocks are shared only among requests with the same salt
    output_interval: int = 1  # tokens per output after the first; 0: all the rest in one


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """Log-probabilities at one token's position, from the last layer's unprocessed logits."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first
    rank: int = 0  # how many tokens are at least as likely, itself included: 1 for the likeliest


@dataclass(slots=True)  # made for every draft: frozen or kw_only would take twice as long
class ExitRecord:
    """What happened to one draft: where it exited, how sure its source was, and the verdict."""

    token_id: int
    exit_layer: int  # 0: before any layer; LOOKED_UP: no head made it
    confidence: float
    accepted: bool
    place: int = 0  # number of drafts before it; two candidates can share a place

    @property
    def source(self) -> DraftSource:
        """What made the draft."""
        return "lookup" if self.exit_layer == LOOKED_UP else "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrace:
    """Provenance of one emitted token (`early_exit.return_trace`)."""

    token_id: int
    exit_layer: int  # where it exited; LOOKED_UP; the number of layers if no draft
    confidence: float | None  # how sure its source was; None if it was no draft
    rejected: tuple[ExitRecord, ...] = ()  # drafts from this position on, rolled back here

    @property
    def source(self) -> Literal[DraftSource, "model"]:
        """What made the token: the model itself if it was no draft."""
        if self.confidence is None:
            return "model"
        return "lookup" if self.exit_layer == LOOKED_UP else "head"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftFigures:
    """A request's own speculative-decoding figures, in vLLM's terms."""

    num_steps: int  # decode steps with at least one draft
    num_draft_tokens: int
    num_accepted_tokens: int
    acceptance_histogram: tuple[int, ...]  # [j] = steps with exactly j accepted drafts
    accepted_by_layer: Mapping[int, int]  # exit layer (or LOOKED_UP) -> accepted drafts from there
    drafted_by_layer: Mapping[int, int]
    # What the policy was doing at the request's end, as it applies to this request.
    policy: PolicyReport = field(default_factory=PolicyReport, compare=False)

    @property
    def mean_acceptance_length(self) -> float:
        """1 + accepted / steps: the last layer's own token of each step counts, too."""
        return 1 + self.num_accepted_tokens / self.num_steps if self.num_steps else 1.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted tokens; 0 without drafts."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0


@dataclass(slots=True)  # made for every token: frozen or kw_only would take twice as long
class RequestOutput:
    """The next piece of a request's output. The last one has a `finish_reason`."""

    request_id: str
    text: str  # safe to send: never part of a stop string or of an unfinished character
    token_ids: tuple[int, ...]  # new since the last output, also while `text` is held back
    num_prompt_tokens: int
    num_output_tokens: int  # so far
    num_cached_tokens: int = 0  # prompt tokens whose KV was found in the prefix cache
    # Where they were asked for:
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per new token
    trace: tuple[TokenTrace, ...] = ()  # one per new token
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # on the first output; none for the first token
    # On the last output:
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id that ended it
    embedding: tuple[float, ...] | None = None  # with `pooling`; not normalized
    queue_s: float = field(default=0.0, compare=False)  # from arrival to the first step with it
    num_preemptions: int = field(default=0, compare=False)
    draft_figures: DraftFigures | None = None
    error: str | None = None  # with FinishReason.ERROR or DEAD_END: what to tell the client
