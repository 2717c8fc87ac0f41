"""Renders log-probabilities of prompts in the shape that vLLM's clients know."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from engine import Tokenizer
from engine.request import RequestOutput, TokenLogprobs
from server.protocol.common import PromptLogprob
from server.render.common import MIN_LOGPROB, AnswerFrame


def with_prompt_logprobs(
    choices: Sequence[RequestOutput], num_choices_per_prompt: int
) -> list[RequestOutput]:
    """Give all choices of a prompt the log-probabilities that only its first one asked for."""
    firsts = [choices[index - index % num_choices_per_prompt] for index in range(len(choices))]
    return [
        replace(output, prompt_logprobs=first.prompt_logprobs)
        for output, first in zip(choices, firsts, strict=True)
    ]


def prompt_logprobs(
    frame: AnswerFrame, output: RequestOutput
) -> list[dict[int, PromptLogprob] | None] | None:
    """Return one entry per prompt token, None for the first; None if they were not asked for."""
    num_top = frame.num_prompt_logprobs
    if num_top is None:
        return None
    texts = _Texts(frame.tokenizer)
    return [None, *(_entry(texts, token, num_top) for token in output.prompt_logprobs)]


class _Texts(dict[int, str]):
    """A cache of tokens' texts: the likeliest tokens are the same ones again and again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __missing__(self, token_id: int) -> str:
        text = self[token_id] = self._tokenizer.token_text(token_id)
        return text


def _entry(
    text_of: Mapping[int, str], token: TokenLogprobs, num_top: int
) -> dict[int, PromptLogprob]:
    entry = {token.token_id: _logprob(text_of[token.token_id], token.logprob, token.rank)}
    for rank, (token_id, logprob) in enumerate(token.top[:num_top], start=1):
        if token_id != token.token_id:
            entry[token_id] = _logprob(text_of[token_id], logprob, rank)
    return entry


def _logprob(text: str, logprob: float, rank: int) -> PromptLogprob:
    return PromptLogprob(logprob=max(logprob, MIN_LOGPROB), rank=rank, decoded_token=text)
