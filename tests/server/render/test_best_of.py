"""Candidates are compared by their mean log-probability, whatever their lengths."""

from engine.request import RequestOutput, TokenLogprobs
from server.render.best_of import likeliest


def candidate(*logprobs: float) -> RequestOutput:
    return RequestOutput(
        request_id="r",
        text="",
        token_ids=tuple(range(len(logprobs))),
        num_prompt_tokens=1,
        num_output_tokens=len(logprobs),
        logprobs=tuple(TokenLogprobs(token_id=7, logprob=logprob) for logprob in logprobs),
    )


def test_the_likeliest_per_token_come_first():
    long, short, nothing = candidate(-1.0, -1.0), candidate(-1.5), candidate()

    assert likeliest([short, long], 1) == [long]
    assert likeliest([short, long, nothing], 3) == [nothing, long, short]
