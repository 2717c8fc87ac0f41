"""Answers of /v1/completions with `best_of`: of each prompt's candidates, the likeliest."""

from collections.abc import Sequence
from dataclasses import replace

from engine.request import RequestOutput
from server.protocol.completions import Completion, CompletionRequest
from server.render.common import AnswerFrame, StreamTally, total_usage
from server.render.completions import CompletionRenderer


class BestOfRenderer(CompletionRenderer):
    """Sees every candidate and answers with n of each prompt; only whole, never streamed."""

    def __init__(self, body: CompletionRequest, frame: AnswerFrame) -> None:
        self._num_kept = body.n or 1
        self._num_candidates = body.num_candidates
        self._has_logprobs = body.logprobs is not None
        own = frame.prompts[:: self._num_candidates]
        super().__init__(
            replace(frame, prompts=[prompt for prompt in own for _ in range(self._num_kept)])
        )

    def answer(self, choices: Sequence[RequestOutput]) -> Completion:
        """The answer; its usage counts all candidates, as OpenAI's does."""
        kept: list[RequestOutput] = []
        for start in range(0, len(choices), self._num_candidates):
            kept += likeliest(choices[start : start + self._num_candidates], self._num_kept)
        if not self._has_logprobs:
            kept = [replace(output, logprobs=()) for output in kept]
        answer = super().answer(kept)
        tally = StreamTally()
        for index, output in enumerate(choices):
            tally.add(index, output)
        answer.usage = total_usage(self._frame, tally)
        return answer


def likeliest(candidates: Sequence[RequestOutput], num_kept: int) -> list[RequestOutput]:
    """The candidates with the highest mean log-probability per token, best first."""
    return sorted(candidates, key=_mean_logprob, reverse=True)[:num_kept]


def _mean_logprob(output: RequestOutput) -> float:
    num_tokens = len(output.logprobs)
    return sum(each.logprob for each in output.logprobs) / num_tokens if num_tokens else 0.0
