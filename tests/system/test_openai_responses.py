"""OpenAI's Python client against /v1/responses: events parse, and all ways give one answer."""

from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response, ResponseCompletedEvent, ResponseIncompleteEvent
from openai.types.responses.response_stream_event import ResponseStreamEvent
from pydantic import TypeAdapter

FIELDS = {
    "input": [{"role": "user", "content": "Name three fruits."}],
    "instructions": "Answer in one line.",
    "max_output_tokens": 8,
    "temperature": 0,
}
EVENT = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
def client(server_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def model(client: OpenAI) -> str:
    return client.models.list().data[0].id


def counts(answer: Response) -> tuple[int, int, int]:
    """Return the token counts but cached tokens, which the first of equal prompts lacks."""
    assert answer.usage is not None
    return answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens


def test_whole_streamed_and_accumulated_say_the_same(client, model):
    whole = client.responses.create(model=model, **FIELDS)
    assert whole.output_text
    assert whole.usage.output_tokens <= 8
    Response.model_validate(whole.to_dict(), strict=False)

    stream = list(client.responses.create(model=model, stream=True, **FIELDS))
    for event in stream:  # the client itself does not validate events
        EVENT.validate_python(event.to_dict())
    assert isinstance(stream[-1], (ResponseCompletedEvent, ResponseIncompleteEvent))
    assert stream[-1].response.output_text == whole.output_text
    assert counts(stream[-1].response) == counts(whole)

    with client.responses.stream(model=model, **FIELDS) as helper:
        pieces = [event.delta for event in helper if event.type == "response.output_text.delta"]
    assert "".join(pieces) == whole.output_text


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_early_exits_change_nothing(client, model, temperature):
    answers = [
        client.responses.create(
            model=model,
            input="Count to ten.",
            max_output_tokens=24,
            temperature=temperature,
            include=["message.output_text.logprobs"],
            top_logprobs=3,
            extra_body={"seed": 7, "early_exit": early_exit},
        )
        for early_exit in ({"enabled": False}, {"enabled": True, "threshold": 0.3})
    ]

    plain, early = (answer.output[0].content[0] for answer in answers)
    assert early.text == plain.text
    assert early.logprobs == plain.logprobs
    assert len(plain.logprobs) == answers[0].usage.output_tokens
    assert counts(answers[0]) == counts(answers[1])


def test_errors_become_the_clients_exceptions(client, model):
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(model=model, input="a", store=True)
    assert raised.value.param == "store"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


async def test_the_async_client(server_url, model):
    async with AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        whole = await client.responses.create(model=model, **FIELDS)
        stream = await client.responses.create(model=model, stream=True, **FIELDS)
        text = "".join([getattr(event, "delta", "") async for event in stream])

    assert text == whole.output_text
