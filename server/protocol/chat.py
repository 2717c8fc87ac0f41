"""Wire types of POST /v1/chat/completions."""

from typing import Literal

from pydantic import Field

from server.protocol.common import (
    CompletionRequestBase,
    FinishReasonName,
    Metrics,
    RequestModel,
    ResponseModel,
    StopReason,
    Trace,
    Usage,
    is_none,
)


class ContentPart(RequestModel):
    """A part of a message's content; only text is served."""

    type: str = Field(max_length=64)
    text: str | None = None


class ChatMessage(RequestModel):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]
    name: str | None = None


class ChatCompletionRequest(CompletionRequestBase):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class TokenAlternative(ResponseModel):
    """A token that could have come, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TokenAlternative):
    """A token that came."""

    top_logprobs: list[TokenAlternative]


class ChatLogprobs(ResponseModel):
    """One entry per token."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(ResponseModel):
    """The model's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(ResponseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReasonName
    stop_reason: StopReason = None
    early_exit_trace: Trace = None


class ChatCompletion(ResponseModel):
    """The answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChoice]
    usage: Usage
    metrics: Metrics = None


class Delta(ResponseModel):
    """What a chunk adds to the message; the first carries the role, the last nothing."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=is_none)
    content: str | None = Field(default=None, exclude_if=is_none)


class ChatChunkChoice(ResponseModel):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReasonName | None = None
    stop_reason: StopReason = None
    early_exit_trace: Trace = None


class ChatCompletionChunk(ResponseModel):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    metrics: Metrics = None
