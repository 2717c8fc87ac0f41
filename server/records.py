"""What becomes known of a request while it is served, for the access log, metrics and traces.

`RequestIdMiddleware` begins one record per HTTP request, the observer one per generation. Of a
prompt or an output, nothing but its length reaches a log or a trace.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection
from starlette.types import Scope

from engine.request import DraftFigures, FinishReason, GenerationRequest

_KEY = "record"


@dataclass(slots=True, kw_only=True)
class GenerationRecord:
    """What was seen of one generation; times are in seconds since it was started."""

    index: int  # among the request's generations, which come prompt by prompt
    request: GenerationRequest
    started_at_ns: int  # Unix time
    finish_reason: FinishReason = FinishReason.ABORT  # until its last output says otherwise
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    queue_s: float = 0.0
    first_token_s: float | None = None
    last_token_s: float = 0.0
    end_s: float = 0.0
    draft_figures: DraftFigures | None = None


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """What was seen of one HTTP request; the counts are over all its generations."""

    request_id: str
    status: int | None = None  # of the answer, once it has begun
    trace_context: Mapping[str, str] = field(default_factory=dict)  # W3C headers as they came
    num_choices: int = 1  # the request's n: choices returned for each prompt
    num_generations_per_prompt: int = 1  # its n, or best_of where that is given
    num_generations: int = 0
    prompt_tokens_of_generations: int = 0
    num_cached_tokens: int = 0  # of each prompt, as its first generation found it
    num_output_tokens: int = 0
    max_output_tokens: int = 0  # of one generation
    first_token_s: float | None = None  # of the generation that ended first
    queue_s: float = 0.0  # the longest
    finish_reasons: list[FinishReason] = field(default_factory=list)  # in the order of ending

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens, each prompt counted once however many generations it has."""
        return self.prompt_tokens_of_generations // self.num_generations_per_prompt

    def add(self, generation: GenerationRecord) -> None:
        """Add the figures of a generation that has ended."""
        self.prompt_tokens_of_generations += len(generation.request.prompt_token_ids)
        # A prompt's generations share its blocks: what others found there, the first one computed.
        if generation.index % self.num_generations_per_prompt == 0:
            self.num_cached_tokens += generation.num_cached_tokens
        self.num_output_tokens += generation.num_output_tokens
        self.max_output_tokens = max(self.max_output_tokens, generation.num_output_tokens)
        self.queue_s = max(self.queue_s, generation.queue_s)
        self.finish_reasons.append(generation.finish_reason)
        if self.first_token_s is None:
            self.first_token_s = generation.first_token_s


def begin_record(scope: Scope, record: RequestRecord) -> None:
    """Put a request's record where `record_of` finds it."""
    scope.setdefault("state", {})[_KEY] = record


def record_of(connection: HTTPConnection) -> RequestRecord:
    """Return the record of a request."""
    record = connection.scope["state"][_KEY]
    assert isinstance(record, RequestRecord), "the outermost middleware begins one"
    return record
