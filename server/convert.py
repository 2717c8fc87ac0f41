"""Converts wire requests to `GenerationRequest`s, or refuses them, naming the field. Pure.

This is the last check of every number and id: the engine and its kernels use them as indices
unchecked.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.errors import PromptTooLong, RequestError
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams, Structure
from server.protocol.base import RequestModel
from server.protocol.chat import ChatCompletionRequest
from server.protocol.common import (
    MAX_TOTAL_CHOICES,
    CompletionRequestBase,
    TruncationFields,
    refuse_unsupported,
)
from server.protocol.completions import CompletionRequest
from server.protocol.embeddings import EmbeddingsRequest
from server.protocol.foreign import refuse_foreign
from server.sampling_defaults import SamplingDefaults
from server.tools import check_tools

_MAX_LOGIT_BIAS = 100.0
_SEED_RANGE = 1 << 64
_GREEDY_BELOW = 1e-5  # a temperature this low is greedy in effect, and dividing by it overflows
_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions
_TOKEN_ID_KEY = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What the served model and the server's settings allow, and what they fill in."""

    max_model_len: int
    vocab_size: int
    max_draft_tokens: int
    max_logprobs: int
    stream_interval: int = 1  # tokens per event of a stream
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)


def check_options(body: CompletionRequestBase, sent: RequestModel | None = None) -> list[str]:
    """Refuse options and combinations that the body alone shows to be wrong.

    Args:
        body: the body.
        sent: what the client sent, if the body was made of it.

    Returns:
        Names of unknown fields, which have no effect.

    Raises:
        RequestError: naming the field.
    """
    refuse_foreign(body.model_extra or {}, {})
    unknown = refuse_unsupported(body, sent)
    check_truncation(body)
    _check_streaming(body)
    if isinstance(body, CompletionRequest):
        _check_choices(body)
    if isinstance(body, ChatCompletionRequest):
        if body.top_logprobs and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
        check_tools(body)
    return unknown


def _check_streaming(body: CompletionRequestBase) -> None:
    if body.prompt_logprobs is not None and body.stream:
        raise RequestError("prompt_logprobs are not streamed.", param="prompt_logprobs")
    for name in ("stream_options", "stream_interval"):
        if getattr(body, name) is not None and not body.stream:
            raise RequestError(f"{name} needs stream: true.", param=name)


def _check_choices(body: CompletionRequest) -> None:
    if body.num_candidates < (body.n or 1):
        raise RequestError("best_of is smaller than n.", param="best_of")
    if body.has_rivals and body.stream:
        raise RequestError("best_of larger than n cannot be streamed.", param="best_of")
    if len(body.prompt) * body.num_candidates > MAX_TOTAL_CHOICES:
        message = f"At most {MAX_TOTAL_CHOICES} choices are allowed in all."
        raise RequestError(message, param=multiplying_param(body))


def to_generation_requests(
    body: CompletionRequestBase,
    prompts: Sequence[Sequence[int]],
    limits: RequestLimits,
    *,
    answer_id: str,
    seed: int,
    structure: Structure | None = None,
) -> list[GenerationRequest]:
    """Make one engine request per choice, in the order of the answer's indices.

    Each prompt gets `best_of` choices where that is given, else `n`.

    Args:
        body: the checked body.
        prompts: token ids of each prompt.
        limits: what is allowed here.
        answer_id: prefix of the engine's request ids.
        seed: used if the body has none; choice i uses seed + i, so that choices differ. From the
            body's own seed every prompt's choices are counted anew, so that a prompt has the same
            choices in a batch as alone.
        structure: what every output has to look like; the engine has approved it.

    Raises:
        RequestError: a number or id is out of range, or the prompt is too long.
    """
    early_exit = _early_exit(body, limits)
    num_prompt_logprobs = _num_prompt_logprobs(body, limits)
    num_candidates = body.num_candidates if isinstance(body, CompletionRequest) else body.n or 1
    requests: list[GenerationRequest] = []
    for prompt in prompts:
        check_token_ids(prompt, limits, prompt_param(body))
        max_tokens = _max_tokens(body, len(prompt), limits)
        for place in range(num_candidates):
            index = len(requests)
            # A prompt's log-probabilities are the same for all its choices, so one of them is
            # enough, except in a stream, whose choices do not wait for each other.
            reads_prompt = place == 0 or bool(body.stream)
            requests.append(
                GenerationRequest(
                    request_id=f"{answer_id}-{index}",
                    prompt_token_ids=tuple(prompt),
                    sampling=_sampling(
                        body,
                        limits,
                        max_tokens,
                        seed=seed + index if body.seed is None else body.seed + place,
                        num_prompt_logprobs=num_prompt_logprobs if reads_prompt else None,
                        structure=structure,
                    ),
                    early_exit=early_exit,
                    priority=body.priority or 0,
                    cache_salt=body.cache_salt or "",
                    output_interval=_output_interval(body, limits),
                )
            )
    return requests


def check_truncation(body: TruncationFields) -> None:
    """Refuse a truncation side without a length.

    Raises:
        RequestError: naming the field.
    """
    if body.truncation_side is not None and body.truncate_prompt_tokens is None:
        message = "truncation_side needs truncate_prompt_tokens."
        raise RequestError(message, param="truncation_side")


def truncated(
    body: TruncationFields, prompts: Sequence[Sequence[int]], limits: RequestLimits
) -> Sequence[Sequence[int]]:
    """Cut the prompts to `truncate_prompt_tokens` where they are longer.

    -1 cuts them to what fits the model's context together with the output asked for, or with one
    token if no number was given; embeddings have no output.
    """
    kept = body.truncate_prompt_tokens
    if kept is None:
        return prompts
    if kept == -1:
        kept = max(1, limits.max_model_len - _num_tokens_to_come(body))
    is_right = body.truncation_side == "right"
    return [prompt[:kept] if is_right else prompt[-kept:] for prompt in prompts]


def _num_tokens_to_come(body: TruncationFields) -> int:
    """Return how many output tokens the prompt has to leave room for."""
    if isinstance(body, EmbeddingsRequest):
        return 0
    asked = _asked_max_tokens(body) if isinstance(body, CompletionRequestBase) else None
    return 1 if asked is None else asked


def multiplying_param(body: CompletionRequestBase) -> str:
    """Return the name of the field that makes a body's choices many."""
    if isinstance(body, CompletionRequest) and body.has_rivals:
        return "best_of"
    return "n" if (body.n or 1) > 1 else prompt_param(body)


def prompt_param(body: CompletionRequestBase) -> str:
    """Return the name of the field that the prompt came from."""
    return "prompt" if isinstance(body, CompletionRequest) else "messages"


def _sampling(
    body: CompletionRequestBase,
    limits: RequestLimits,
    max_tokens: int,
    *,
    seed: int,
    num_prompt_logprobs: int | None,
    structure: Structure | None,
) -> SamplingParams:
    defaults = limits.defaults
    temperature = defaults.temperature if body.temperature is None else body.temperature
    top_k = defaults.top_k if body.top_k is None else body.top_k
    penalty = body.repetition_penalty
    stop_token_ids = body.stop_token_ids or []
    check_token_ids(stop_token_ids, limits, "stop_token_ids")
    if body.allowed_token_ids is not None:
        check_token_ids(body.allowed_token_ids, limits, "allowed_token_ids")
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        message = f"min_tokens: should be at most {max_tokens}, the output's limit."
        raise RequestError(message, param="min_tokens")
    return SamplingParams(
        temperature=temperature if temperature >= _GREEDY_BELOW else 0.0,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=top_k if 0 < top_k < limits.vocab_size else 0,
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        seed=seed % _SEED_RANGE,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=body.stop,
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        stop_token_ids=tuple(stop_token_ids),
        ignore_eos=bool(body.ignore_eos),
        skip_special_tokens=body.skip_special_tokens is not False,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=defaults.repetition_penalty if penalty is None else penalty,
        logit_bias=_logit_bias(body, limits),
        allowed_token_ids=tuple(sorted(set(body.allowed_token_ids or ()))),
        num_logprobs=_num_logprobs(body, limits),
        num_prompt_logprobs=num_prompt_logprobs,
        structure=structure,
    )


def _output_interval(body: CompletionRequestBase, limits: RequestLimits) -> int:
    """Return the tokens per output; 0, which is all in one, unless the answer is streamed."""
    return (body.stream_interval or limits.stream_interval) if body.stream else 0


def _early_exit(body: CompletionRequestBase, limits: RequestLimits) -> EarlyExitOptions:
    asked = body.early_exit
    if asked is None:
        return EarlyExitOptions()
    max_draft_tokens = asked.max_draft_tokens
    if max_draft_tokens is not None:
        max_draft_tokens = min(max_draft_tokens, limits.max_draft_tokens)
    return EarlyExitOptions(
        enabled=asked.enabled,
        threshold=asked.threshold,
        max_draft_tokens=max_draft_tokens,
        lookup=asked.lookup,
        return_trace=asked.return_trace,
    )


def _max_tokens(body: CompletionRequestBase, num_prompt_tokens: int, limits: RequestLimits) -> int:
    room = limits.max_model_len - num_prompt_tokens
    asked = _asked_max_tokens(body)
    if asked is None:
        usual = room if isinstance(body, ChatCompletionRequest) else _DEFAULT_COMPLETION_TOKENS
        asked = max(1, min(room, usual, limits.defaults.max_new_tokens or usual))
    if asked > room:
        raise PromptTooLong(
            f"This model's context is {limits.max_model_len} tokens; the prompt has "
            f"{num_prompt_tokens} and {asked} more were asked for.",
            param=prompt_param(body),
        )
    return asked


def _asked_max_tokens(body: CompletionRequestBase) -> int | None:
    if not isinstance(body, ChatCompletionRequest) or body.max_completion_tokens is None:
        return body.max_tokens
    if body.max_tokens not in (None, body.max_completion_tokens):
        message = "max_tokens and max_completion_tokens differ; give one of them."
        raise RequestError(message, param="max_tokens")
    return body.max_completion_tokens


def _logit_bias(body: CompletionRequestBase, limits: RequestLimits) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in (body.logit_bias or {}).items():
        if not _TOKEN_ID_KEY.fullmatch(key) or int(key) >= limits.vocab_size:
            message = f"logit_bias: keys should be token ids from 0 to {limits.vocab_size - 1}."
            raise RequestError(message, param="logit_bias")
        if abs(value) > _MAX_LOGIT_BIAS:
            raise RequestError("logit_bias: values should be from -100 to 100.", param="logit_bias")
        bias[int(key)] = value
    return bias


def _num_logprobs(body: CompletionRequestBase, limits: RequestLimits) -> int | None:
    if isinstance(body, ChatCompletionRequest):
        asked, param = (body.top_logprobs or 0) if body.logprobs else None, "top_logprobs"
    else:
        assert isinstance(body, CompletionRequest), "the body is a chat's or a completion's"
        asked, param = body.logprobs, "logprobs"
        if asked is None and body.has_rivals:
            asked = 0  # the chosen tokens' own, to compare the candidates
    if asked is not None and asked > limits.max_logprobs:
        raise RequestError(f"{param}: at most {limits.max_logprobs} are allowed.", param=param)
    return asked


def _num_prompt_logprobs(body: CompletionRequestBase, limits: RequestLimits) -> int | None:
    """Return how many are asked for, by `prompt_logprobs` or by `echo` with `logprobs`."""
    asked = body.prompt_logprobs
    if asked is not None and asked > limits.max_logprobs:
        message = f"prompt_logprobs: at most {limits.max_logprobs} are allowed."
        raise RequestError(message, param="prompt_logprobs")
    if isinstance(body, CompletionRequest) and body.echo and body.logprobs is not None:
        return max(asked or 0, body.logprobs)
    return asked


def check_token_ids(token_ids: Sequence[int], limits: RequestLimits, param: str) -> None:
    """Refuse token ids outside the model's vocabulary.

    Raises:
        RequestError: naming `param`.
    """
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < limits.vocab_size:
        message = f"{param}: token ids should be from 0 to {limits.vocab_size - 1}."
        raise RequestError(message, param=param)
