"""Wire types of POST /v1/completions."""

from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from server.protocol.common import (
    MAX_CHOICES,
    CompletionRequestBase,
    FinishReasonName,
    Metrics,
    PromptLogprobs,
    ResponseModel,
    StopReason,
    TokenIds,
    Trace,
    Usage,
)

MAX_PROMPTS = 1024


def as_prompts(value: object, *, most: int = MAX_PROMPTS) -> list[str | list[int]]:
    """Convert any of the four ways to write prompts to a list of prompts.

    Raises:
        ValueError: it is none of them, empty, or more than `most`.
    """
    prompts: list[object] = [value]
    if isinstance(value, list) and set(map(type, value)) != {int}:
        prompts = value
    if len(prompts) > most:
        raise ValueError(f"at most {most} prompts are allowed")
    if not (all(isinstance(each, str) for each in prompts) or all(map(_is_token_ids, prompts))):
        raise ValueError("should be a string, token ids, or a list of either")
    if not prompts or not all(prompts):
        raise ValueError("should not be empty")
    return prompts  # type: ignore[return-value]


def _is_token_ids(prompt: object) -> bool:
    return isinstance(prompt, list) and set(map(type, prompt)) <= {int}


TextOrTokens = str | list[str] | list[int] | list[list[int]]
Prompts = Annotated[
    list[str | list[int]], PlainValidator(as_prompts, json_schema_input_type=TextOrTokens)
]


class CompletionRequest(CompletionRequestBase):
    """The body of POST /v1/completions."""

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0, lt=2**31)  # 0: only the prompt is computed
    echo: bool | None = None  # the prompt begins the text
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)  # candidates for n; not streamed
    logprobs: int | None = Field(None, ge=0, le=20)
    add_special_tokens: bool | None = None

    @property
    def num_candidates(self) -> int:
        """Continuations to generate for each prompt."""
        return self.best_of or self.n or 1

    @property
    def has_rivals(self) -> bool:
        """Whether more continuations are generated than returned."""
        return self.num_candidates > (self.n or 1)


class CompletionLogprobs(ResponseModel):
    """Parallel lists, one entry per token; null for the first of an echoed prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(ResponseModel):
    """One continuation, or in a stream a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReasonName | None = None
    stop_reason: StopReason = None
    token_ids: TokenIds = None
    prompt_token_ids: TokenIds = None
    prompt_logprobs: PromptLogprobs = None
    early_exit_trace: Trace = None


class Completion(ResponseModel):
    """The answer of POST /v1/completions; also each chunk of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[CompletionChoice]
    usage: Usage | None = None
    metrics: Metrics = None
