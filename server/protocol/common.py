"""Wire types that several endpoints share."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
)

from engine.errors import UnsupportedOption
from engine.policy_reason import PolicyReason
from engine.request import DraftSource
from server.protocol.base import RequestModel, unknown_inside
from server.protocol.sampling import (
    MinP,
    NumTokens,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
)
from server.protocol.structures import ResponseFormat, StructuredOutputs

MAX_CHOICES = 128  # per prompt
MAX_TOTAL_CHOICES = 1024  # per request, over all its prompts
_MAX_BIASES = 1024
_MAX_STOPS = 4
_MAX_STOP_CHARS = 1024
_INT32_MAX = 2**31 - 1

# Options of OpenAI's or vLLM's APIs that change the output and are not offered, with their neutral
# values. Any other value is refused by name, unless the endpoint declares the field. Names not in
# this table are unknown fields: ignored, or refused with --reject-unknown-fields.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),  # completions have it; chats get theirs from the template
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),  # completions have it
    "cache_salt": ("",),
    "chat_template": (),
    "chat_template_kwargs": ({},),  # chats have it
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),  # completions and chats have it
    "ec_transfer_params": ({},),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),  # vLLM's name before structured_outputs, as the next three
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_reasoning": (True,),
    "kv_transfer_params": ({},),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "max_completion_tokens": (),
    "media_io_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"], []),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "prompt_cache_options": (),  # the server's own settings govern its cache
    "prompt_cache_retention": ("in_memory",),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "repetition_detection": (),
    "request_id": (),  # the header X-Request-Id is echoed
    "return_prompt_text": (False,),
    "spaces_between_special_tokens": (True,),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),  # chats have it
    "tools": ([],),  # chats have it
    "thinking_token_budget": (),
    "top_logprobs": (),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    "web_search_options": (),
}


class ResponseModel(BaseModel):
    """Base of what clients receive."""

    model_config = ConfigDict(extra="forbid")


class NamedEvent(ResponseModel):
    """A stream's chunk whose event also names its type on the `event:` line."""

    type: str


def unsupported_names() -> Collection[str]:
    """Return the names of known options that at least one endpoint does not offer."""
    return _UNSUPPORTED.keys()


def refuse_unsupported(body: RequestModel, sent: RequestModel | None = None) -> list[str]:
    """Refuse known options that are not offered.

    Args:
        body: the body.
        sent: what the client sent, if the body was made of it.

    Returns:
        Names of unknown fields: the body's own, and those inside the objects that were sent.

    Raises:
        UnsupportedOption: naming the first one.
    """
    unknown = []
    for name, value in (body.model_extra or {}).items():
        neutral = _UNSUPPORTED.get(name)
        if neutral is None:
            unknown.append(name)
        elif value is not None and value not in neutral:
            message = f"{name} is not supported by this server"
            if name.startswith("guided_"):
                message += f"; use structured_outputs.{name.removeprefix('guided_')} instead"
            raise UnsupportedOption(f"{message}.", param=name)
    return [*unknown, *unknown_inside(sent or body)]


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("should be at least 1, or -1")
    return value


def _as_tuple(value: object) -> object:
    """Convert `stop`; checked here so that an error names the field, not a union's branch."""
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return ()
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("should be a string or a list of strings")
    if len(stops) > _MAX_STOPS:
        raise ValueError(f"at most {_MAX_STOPS} stop strings are allowed")
    if not all(0 < len(stop) <= _MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"stop strings should have 1 to {_MAX_STOP_CHARS} characters")
    return tuple(stops)


def _not_too_many(value: object) -> object:
    """Check the number of entries first, as each of them may be an error of its own."""
    if isinstance(value, dict) and len(value) > _MAX_BIASES:
        raise ValueError(f"at most {_MAX_BIASES} tokens can be biased")
    return value


Stop = Annotated[
    tuple[str, ...], PlainValidator(_as_tuple, json_schema_input_type=str | list[str] | None)
]


TruncateTo = Annotated[int, Field(ge=-1, le=_INT32_MAX), AfterValidator(_not_zero)]


class StreamOptions(RequestModel):
    """What a stream carries besides the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # usage on every chunk; needs include_usage
    include_obfuscation: Literal[False] | None = None


class EarlyExit(BaseModel):
    """This server's extension: control of early exits. Never changes the output, only its speed."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

    enabled: bool = True
    threshold: float | None = Field(None, ge=0, le=1)
    max_draft_tokens: int | None = Field(None, ge=0, le=16)
    lookup: bool = True  # drafts from text that repeats as well
    return_trace: bool = False


class TruncationFields(RequestModel):
    """How a prompt that is too long is cut."""

    truncate_prompt_tokens: TruncateTo | None = None  # -1: to what fits the context
    truncation_side: Literal["left", "right"] | None = None  # which end is cut; default: left


class CompletionRequestBase(TruncationFields):
    """The fields of completions and chats alike. None means the default, as in OpenAI's clients."""

    model: str = Field(max_length=512)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: NumTokens | None = None
    min_tokens: int | None = Field(None, ge=0, le=_INT32_MAX)
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: Annotated[dict[str, float] | None, BeforeValidator(_not_too_many)] = Field(
        None, max_length=_MAX_BIASES
    )
    # Choice i of each prompt is sampled with seed + i, whatever else is in the batch.
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop = ()
    stop_token_ids: list[int] | None = Field(None, max_length=128)
    # The only tokens that may be chosen.
    allowed_token_ids: Annotated[list[int], Field(fail_fast=True)] | None = Field(
        None, min_length=1
    )
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: int | None = Field(None, ge=1, le=_INT32_MAX)  # tokens per event
    prompt_logprobs: int | None = Field(None, ge=0, le=20)  # of every prompt token; not streamed
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None  # log-probabilities name tokens "token_id:7"
    # The next five are for a provider's accounts and caches, and have no effect here.
    user: str | None = None
    session_id: str | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None  # equal prefixes are found without it
    priority: int | None = Field(None, ge=-(2**31), le=_INT32_MAX)  # lower runs first
    cache_salt: str | None = Field(None, min_length=1, max_length=128)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    early_exit: EarlyExit | None = None


class CompletionTokensDetails(ResponseModel):
    """Output tokens by kind. Predictions (`prediction`, not drafts) are never used."""

    reasoning_tokens: int = 0  # thoughts with their tags
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class PromptTokensDetails(ResponseModel):
    """Where the prompt's tokens came from."""

    cached_tokens: int  # found in the prefix cache, so not computed again


class Usage(ResponseModel):
    """Token counts. A draft that was rejected is never counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: CompletionTokensDetails
    prompt_tokens_details: PromptTokensDetails


class SpeculativeDecoding(ResponseModel):
    """A request's drafts, under vLLM's names, so that tools made for vLLM can read them."""

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int]  # [j] = steps with exactly j accepted drafts
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int  # longest possible run of drafts


class EarlyExitMetrics(ResponseModel):
    """Drafts by the layer they left at; layer -1: looked up in the text."""

    accepted_by_layer: dict[int, int]
    drafted_by_layer: dict[int, int]
    reason: PolicyReason  # why drafts were made at the end, or were not
    policy: str  # the same for people, with the policy's figures over all requests


class RequestMetrics(ResponseModel):
    """Figures of one request, if it has a single choice."""

    speculative_decoding: SpeculativeDecoding
    early_exit: EarlyExitMetrics


class PromptLogprob(ResponseModel):
    """How likely a token was at one position of the prompt."""

    logprob: float
    rank: int  # 1 for the likeliest
    decoded_token: str


class TraceDraft(ResponseModel):
    """A draft that was rolled back."""

    token_id: int
    token: str
    bytes: list[int]
    exit_layer: int  # -1: looked up
    confidence: float
    source: DraftSource


class TraceToken(ResponseModel):
    """Where one emitted token came from."""

    token_id: int
    token: str
    bytes: list[int]  # as in OpenAI's log-probabilities: a token need not be whole characters
    exit_layer: int  # -1: looked up; the model's layer count when it ran to the end
    confidence: float | None
    source: Literal[DraftSource, "model"]
    accepted: Literal[True] = True
    rejected: list[TraceDraft]


def is_none(value: object) -> bool:
    """Whether `Field(exclude_if=...)` leaves a field out: our extensions are when they are None."""
    return value is None


Metrics = Annotated[RequestMetrics | None, Field(exclude_if=is_none)]
Trace = Annotated[list[TraceToken] | None, Field(exclude_if=is_none)]
TokenIds = Annotated[list[int] | None, Field(exclude_if=is_none)]
StopReason = Annotated[str | int | None, Field(exclude_if=is_none)]
# For each token of the prompt, entries by token id: the prompt's own token first, then the
# likeliest ones; null for the first token.
PromptLogprobs = Annotated[list[dict[int, PromptLogprob] | None] | None, Field(exclude_if=is_none)]
FinishReasonName = Literal["stop", "length"]
