"""Wire types of POST /v1/chat/completions."""

from typing import Annotated, Literal

from pydantic import Field

from server.protocol.base import JsonObject, RequestModel
from server.protocol.common import (
    CompletionRequestBase,
    FinishReasonName,
    Metrics,
    PromptLogprobs,
    ResponseModel,
    StopReason,
    TokenIds,
    Trace,
    Usage,
    is_none,
)
from server.protocol.sampling import NumTokens

ChatFinishReason = FinishReasonName | Literal["tool_calls"]


class ContentPart(RequestModel):
    """A part of a message's content; only text is supported."""

    type: str = Field(max_length=64)
    text: str | None = None


class CalledFunction(RequestModel):
    """A function and the JSON text of its arguments, from an assistant's turn."""

    name: str = Field(max_length=256)
    arguments: str = "{}"


class MessageToolCall(RequestModel):
    """A call in an assistant's turn."""

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(RequestModel):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = Field(None, max_length=256)
    tool_call_id: str | None = Field(None, max_length=256)
    # An assistant's thought, under both names in use; the template decides whether the model sees
    # it.
    reasoning: str | None = None
    reasoning_content: str | None = None


class Function(RequestModel):
    """A tool's name, what it is for, and the JSON schema of its arguments."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class Tool(RequestModel):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class ChosenFunction(RequestModel):
    """The name of the function to call."""

    name: str = Field(max_length=64)


class ChosenTool(RequestModel):
    """The function that has to be called."""

    type: Literal["function"]
    function: ChosenFunction


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateFields(RequestModel):
    """What a chat template is told besides the messages."""

    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: JsonObject | None = Field(None, max_length=64)
    # Accepted if the template knows it; "none" also if thinking can be turned off or is never done.
    reasoning_effort: Effort | None = None


class ChatCompletionRequest(CompletionRequestBase, TemplateFields):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: NumTokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    echo: bool | None = None  # begin the content with the last turn's, if that is the assistant's


class TokenAlternative(ResponseModel):
    """A token that could have been generated, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TokenAlternative):
    """A generated token."""

    top_logprobs: list[TokenAlternative]


class ChatLogprobs(ResponseModel):
    """One entry per token."""

    content: list[TokenLogprob]
    refusal: None = None


class FunctionCall(ResponseModel):
    """A function and the JSON text of its arguments."""

    name: str
    arguments: str


class ToolCall(ResponseModel):
    """A call that the model makes."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


ReasoningContent = Annotated[str | None, Field(exclude_if=is_none)]


class AnswerMessage(ResponseModel):
    """The model's turn; its reasoning comes under both names in use."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning: ReasoningContent = None
    reasoning_content: ReasoningContent = None
    tool_calls: Annotated[list[ToolCall] | None, Field(exclude_if=is_none)] = None


class ChatChoice(ResponseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason
    stop_reason: StopReason = None
    token_ids: TokenIds = None
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
    prompt_token_ids: TokenIds = None
    prompt_logprobs: PromptLogprobs = None
    metrics: Metrics = None


class FunctionDelta(ResponseModel):
    """The function's name, once, and pieces of the arguments."""

    name: str | None = Field(default=None, exclude_if=is_none)
    arguments: str = ""


class ToolCallDelta(ResponseModel):
    """What a chunk adds to a call; its first carries the id and the name."""

    index: int
    id: str | None = Field(default=None, exclude_if=is_none)
    type: Literal["function"] | None = Field(default=None, exclude_if=is_none)
    function: FunctionDelta


class Delta(ResponseModel):
    """What a chunk adds to the message; the first carries the role, the last nothing."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=is_none)
    content: str | None = Field(default=None, exclude_if=is_none)
    reasoning: ReasoningContent = None
    reasoning_content: ReasoningContent = None
    tool_calls: Annotated[list[ToolCallDelta] | None, Field(exclude_if=is_none)] = None


class ChatChunkChoice(ResponseModel):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    stop_reason: StopReason = None
    token_ids: TokenIds = None
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
    prompt_token_ids: TokenIds = None
    metrics: Metrics = None
