"""Renders answers of /v1/completions with `best_of`: the likeliest candidates of each prompt."""

from collections.abc import Sequence
from dataclasses import replace

from engine.request import RequestOutput
from server.protocol.completions import Completion, CompletionRequest
from server.render.common import AnswerFrame, StreamTally, total_usage
from server.render.completions import CompletionRenderer
from server.render.prompt_logprobs import with_prompt_logprobs


class BestOfRenderer(CompletionRenderer):
    """Takes every candidate and answers with the n likeliest of each prompt; never streamed."""

    def __init__(self, body: CompletionRequest, frame: AnswerFrame) -> None:
        self._num_kept = body.n or 1
        self._num_candidates = body.num_candidates
        self._asked = frame
        own = frame.prompts[:: self._num_candidates]
        kept = replace(
            frame,
            prompts=[prompt for prompt in own for _ in range(self._num_kept)],
            num_choices_per_prompt=self._num_kept,
        )
        super().__init__(body, kept)

    def answer(self, choices: Sequence[RequestOutput]) -> Completion:
        """Return the answer; its usage counts all candidates, as OpenAI's does."""
        choices = with_prompt_logprobs(choices, self._num_candidates)
        kept: list[RequestOutput] = []
        for start in range(0, len(choices), self._num_candidates):
            kept += likeliest(choices[start : start + self._num_candidates], self._num_kept)
        answer = super().answer(kept)
        tally = StreamTally()
        for index, output in enumerate(choices):
            tally.add(index, output)
        answer.usage = total_usage(self._asked, tally)
        return answer


def likeliest(candidates: Sequence[RequestOutput], num_kept: int) -> list[RequestOutput]:
    """Return the candidates with the highest mean log-probability per token, best first."""
    return sorted(candidates, key=_mean_logprob, reverse=True)[:num_kept]


def _mean_logprob(output: RequestOutput) -> float:
    num_tokens = len(output.logprobs)
    return sum(each.logprob for each in output.logprobs) / num_tokens if num_tokens else 0.0
