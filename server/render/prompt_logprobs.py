"""Log-probabilities of prompts, in the shape that vLLM's clients know."""

from collections.abc import Sequence
from dataclasses import replace

from engine.request import RequestOutput, TokenLogprobs
from server.protocol.common import PromptLogprob
from server.render.common import MIN_LOGPROB, AnswerFrame


def with_prompt_logprobs(
    choices: Sequence[RequestOutput], num_choices_per_prompt: int
) -> list[RequestOutput]:
    """Choices that all have what the first one of their prompt has: it alone was asked."""
    firsts = [choices[index - index % num_choices_per_prompt] for index in range(len(choices))]
    return [
        replace(output, prompt_logprobs=first.prompt_logprobs)
        for output, first in zip(choices, firsts, strict=True)
    ]


def prompt_logprobs(
    frame: AnswerFrame, output: RequestOutput
) -> list[dict[int, PromptLogprob] | None] | None:
    """One entry per prompt token, with null for the first, where they were asked for."""
    num_top = frame.num_prompt_logprobs
    if num_top is None:
        return None
    return [None, *(_entry(frame, token, num_top) for token in output.prompt_logprobs)]


def _entry(frame: AnswerFrame, token: TokenLogprobs, num_top: int) -> dict[int, PromptLogprob]:
    entry = {token.token_id: _logprob(frame, token.token_id, token.logprob, token.rank)}
    for rank, (token_id, logprob) in enumerate(token.top[:num_top], start=1):
        entry.setdefault(token_id, _logprob(frame, token_id, logprob, rank))
    return entry


def _logprob(frame: AnswerFrame, token_id: int, logprob: float, rank: int) -> PromptLogprob:
    text = frame.tokenizer.token_text(token_id)
    return PromptLogprob(logprob=max(logprob, MIN_LOGPROB), rank=rank, decoded_token=text)
