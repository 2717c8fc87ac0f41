"""Wire types of POST /v1/responses: the request, the response and its items."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, JsonValue

from server.protocol.base import JsonObject, RequestModel
from server.protocol.chat import TokenLogprob
from server.protocol.common import (
    EarlyExit,
    Metrics,
    ResponseModel,
    Trace,
)
from server.protocol.sampling import NumTokens, Temperature, TopP

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]


class InputPart(RequestModel):
    """A part of an item's content; only text is supported."""

    type: str = Field(max_length=64)
    text: str | None = None


class InputItem(RequestModel):
    """A message, a function call, its output, or reasoning; its fields depend on `type`.

    Reasoning goes to the chat template with what the model said or called next; the template
    decides whether the model sees the reasoning of earlier turns. Summaries are not passed on.
    """

    type: str | None = Field(None, max_length=64)  # default: a message
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | Annotated[list[InputPart], Field(fail_fast=True)] | None = None
    call_id: str | None = Field(None, max_length=256)
    name: str | None = Field(None, max_length=256)
    arguments: str | None = None
    output: str | Annotated[list[InputPart], Field(fail_fast=True)] | None = None


class FunctionTool(RequestModel):
    """A function that the model may call; no other kind of tool is supported.

    Each is offered from the start, and the model calls it itself.
    """

    type: str = Field(max_length=64)
    name: str | None = None
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None
    output_schema: JsonObject | None = None  # told to the model as well
    allowed_callers: list[Literal["direct"]] | None = Field(None, max_length=16)
    defer_loading: Literal[False] | None = None
    is_async: Literal[False] | None = Field(None, alias="async")


class FunctionChoice(RequestModel):
    """The function that has to be called."""

    type: str = Field(max_length=64)
    name: str | None = None


class TextFormat(RequestModel):
    """What the text has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(RequestModel):
    """How the text is written."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningConfig(RequestModel):
    """How much the model thinks, if it is one that does."""

    effort: str | None = Field(None, max_length=16)
    summary: Literal["auto"] | None = None  # accepted, but no summary is ever made
    generate_summary: Literal["auto"] | None = None  # its name before
    context: Literal["auto"] | None = None  # the template decides what earlier turns show
    mode: Literal["standard"] | None = None


class StreamConfig(RequestModel):
    """What a stream carries besides the text."""

    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(RequestModel):
    """The body of POST /v1/responses. Responses are never stored.

    vLLM's sampling extensions (`seed`, `top_k`, `stop`, …) work as in /v1/chat/completions.
    """

    model: str = Field(max_length=512)
    input: str | Annotated[list[InputItem], Field(fail_fast=True, max_length=4096)]
    instructions: str | None = None
    max_output_tokens: NumTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs"]] | None = Field(None, max_length=16)
    tools: list[FunctionTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None  # a hint: equal prefixes are found without it
    max_tool_calls: int | None = Field(None, ge=0, lt=2**31)  # for built-in tools; there are none
    stream: bool | None = None
    stream_options: StreamConfig | None = None
    early_exit: EarlyExit | None = None


class OutputText(ResponseModel):
    """The text of a message."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[dict[str, Any]] = Field(default_factory=list, max_length=0)
    logprobs: list[TokenLogprob] = Field(default_factory=list)


class OutputMessage(ResponseModel):
    """The model's answer."""

    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[OutputText]


class ReasoningText(ResponseModel):
    """What the model thought."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class ReasoningItem(ResponseModel):
    """The reasoning before the answer, in full; no summary is made of it."""

    type: Literal["reasoning"] = "reasoning"
    id: str
    status: ItemStatus
    summary: list[dict[str, Any]] = Field(default_factory=list, max_length=0)
    content: list[ReasoningText]


class FunctionCallItem(ResponseModel):
    """A call that the model makes, with the JSON text of its arguments."""

    type: Literal["function_call"] = "function_call"
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem: TypeAlias = OutputMessage | ReasoningItem | FunctionCallItem


class OfferedTool(ResponseModel):
    """A function that was offered, repeated from the request."""

    type: Literal["function"] = "function"
    name: str
    description: str | None
    parameters: dict[str, JsonValue] | None
    strict: bool


class MadeChoice(ResponseModel):
    """The function that has to be called, repeated from the request."""

    type: Literal["function"] = "function"
    name: str


class IncompleteDetails(ResponseModel):
    """Why a response ended early."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(ResponseModel):
    """Why a response failed."""

    code: str
    message: str


class InputTokensDetails(ResponseModel):
    """Prompt tokens by source."""

    cached_tokens: int
    cache_write_tokens: Literal[0] = 0  # caching is automatic


class OutputTokensDetails(ResponseModel):
    """Output tokens by kind."""

    reasoning_tokens: int


class ResponseUsage(ResponseModel):
    """Token counts. A draft that was rejected is never counted."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Response(ResponseModel):
    """The answer of POST /v1/responses; in a stream also what its first and last events carry."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: ResponseStatus
    background: Literal[False] = False
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["none", "auto", "required"] | MadeChoice
    tools: list[OfferedTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metrics: Metrics = None
    early_exit_trace: Trace = None
