"""The chunks of a choice whose pieces are not simply text, on both endpoints that have choices."""

import json

import pytest
from fake_engine import ByteTokenizer

from engine.request import DraftFigures, FinishReason, RequestOutput, TokenLogprobs, TokenTrace
from server.answer_events import AnswerEvents
from server.parsing.output_parser import OutputFormat
from server.protocol.completions import CompletionRequest
from server.render.chat import ChatRenderer
from server.render.common import AnswerFrame, Renderer
from server.render.completions import CompletionRenderer

PROMPT = [97, 98]


def frame_of(**fields) -> AnswerFrame:
    return AnswerFrame(
        answer_id="a",
        created=1,
        model="m",
        tokenizer=ByteTokenizer(),
        num_choices=1,
        num_prompt_tokens=len(PROMPT),
        max_draft_tokens=3,
        prompts=[PROMPT],
        **fields,
    )


def completion(**fields) -> Renderer:
    body = CompletionRequest(model="m", prompt="ab", logprobs=2)
    return CompletionRenderer(body, frame_of(**fields))


def chat(**fields) -> Renderer:
    return ChatRenderer(frame_of(**fields), OutputFormat())


both = pytest.mark.parametrize("make", [completion, chat])


def output_of(text="", token_ids=(), **fields) -> RequestOutput:
    return RequestOutput("a-0", text, token_ids, len(PROMPT), len(token_ids), 0, **fields)


def chunks(renderer: Renderer, *outputs: RequestOutput) -> list[dict]:
    """Return the chunks of a stream of these outputs of choice 0."""
    events = AnswerEvents(renderer)
    data = b"".join(events.piece(0, output) for output in outputs).decode()
    return [json.loads(line.removeprefix("data: ")) for line in data.splitlines() if line]


def choices(renderer: Renderer, *outputs: RequestOutput) -> list[dict]:
    return [chunk["choices"][0] for chunk in chunks(renderer, *outputs)]


@both
@pytest.mark.parametrize("text", ["", "c"])
def test_the_trace_of_a_token_is_sent_at_once_with_its_text_or_without(make, text):
    trace = (TokenTrace(token_id=195, exit_layer=2, confidence=0.5),)
    *_, choice = choices(make(), output_of(text, (195,), trace=trace))

    assert choice["early_exit_trace"][0]["token_id"] == 195


@both
@pytest.mark.parametrize(("text", "token_ids"), [("c", (99,)), ("", ())])
def test_the_prompts_ids_come_once_even_if_the_first_piece_is_the_last(make, text, token_ids):
    last = output_of(text, token_ids, finish_reason=FinishReason.LENGTH)
    found = chunks(make(has_token_ids=True), last)

    ids = [chunk.get("prompt_token_ids") for chunk in found]
    ids += [chunk["choices"][0].get("prompt_token_ids") for chunk in found]
    assert [each for each in ids if each] == [PROMPT]


@both
@pytest.mark.parametrize("has_usage", [False, True])
def test_the_end_says_what_stopped_the_choice(make, has_usage):
    last = output_of("c", (99,), finish_reason=FinishReason.STOP, stop_reason="x")
    *_, end = choices(make(has_usage=has_usage), last)

    assert (end["finish_reason"], end["stop_reason"]) == ("stop", "x")


@both
def test_the_histogram_has_a_place_for_every_possible_number_of_accepted_drafts(make):
    figures = DraftFigures(
        num_steps=4,
        num_draft_tokens=6,
        num_accepted_tokens=5,
        acceptance_histogram=(0, 3, 1),
        accepted_by_layer={2: 5},
        drafted_by_layer={2: 6},
    )
    last = output_of("c", (99,), finish_reason=FinishReason.STOP, draft_figures=figures)
    *_, end = chunks(make(), last)

    found = end["metrics"]["speculative_decoding"]
    assert (found["acceptance_histogram"], found["num_spec_tokens"]) == ([0, 3, 1, 0], 3)


def test_of_tokens_with_one_name_the_likelier_counts_and_nothing_is_infinite():
    token = TokenLogprobs(token_id=128, logprob=-float("inf"), top=((129, -0.1), (130, -0.5)))
    [choice] = choices(completion(), output_of("", (128,), logprobs=(token,)))

    assert choice["logprobs"]["top_logprobs"] == [{"\ufffd": -0.1}]
    assert choice["logprobs"]["token_logprobs"] == [-9999.0]
