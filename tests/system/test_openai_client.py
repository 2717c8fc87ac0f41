"""OpenAI's own Python client, unmodified, against the server."""

from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

MESSAGES = [{"role": "user", "content": "Name three fruits."}]
GREEDY = {"temperature": 0, "seed": 1}


@pytest.fixture
def client(server_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def model(client: OpenAI) -> str:
    return client.models.list().data[0].id


def test_models(client, model):
    assert client.models.retrieve(model).id == model


def test_chat(client, model):
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_completion_tokens=8, **GREEDY
    )

    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 8


def test_a_chat_stream_says_the_same(client, model):
    fields = {"model": model, "messages": MESSAGES, "max_tokens": 8, **GREEDY}
    whole = client.chat.completions.create(**fields)
    text, reasons, usage = "", [], None
    stream_options = {"include_usage": True}
    for chunk in client.chat.completions.create(
        stream=True, stream_options=stream_options, **fields
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []

    assert text == whole.choices[0].message.content
    assert reasons == [whole.choices[0].finish_reason]
    assert usage == whole.usage


def test_the_clients_stream_helper_works(client, model):
    with client.chat.completions.stream(
        model=model, messages=MESSAGES, max_tokens=8, **GREEDY
    ) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        snapshot = stream.current_completion_snapshot

    assert pieces
    assert "".join(pieces) == snapshot.choices[0].message.content


def test_completions(client, model):
    fields = {"model": model, "prompt": "Once upon a time", "max_tokens": 8, **GREEDY}
    whole = client.completions.create(**fields)
    streamed = client.completions.create(stream=True, **fields)

    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text


def test_several_choices_and_prompts(client, model):
    answer = client.completions.create(
        model=model, prompt=["Once upon", "The sky"], n=2, max_tokens=4, temperature=1, seed=3
    )

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_token_id_prompts(client, model):
    answer = client.completions.create(model=model, prompt=[[50, 51], [52]], max_tokens=2)

    assert answer.usage.prompt_tokens == 3


def test_the_same_seed_gives_the_same_text(client, model):
    texts = {
        client.completions.create(
            model=model, prompt="Once upon", max_tokens=8, temperature=1, seed=11
        )
        .choices[0]
        .text
        for _ in range(2)
    }

    assert len(texts) == 1


def test_logprobs(client, model):
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=3, **GREEDY
    )

    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        assert entry.logprob <= 0
        assert entry.top_logprobs[0].logprob >= entry.logprob
        assert len(entry.top_logprobs) == 3


def test_completion_logprobs(client, model):
    answer = client.completions.create(
        model=model, prompt="Once", max_tokens=3, logprobs=1, **GREEDY
    )

    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == answer.usage.completion_tokens
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert top[token] == logprob


def test_a_stop_string_is_not_part_of_the_text(client, model):
    fields = {"model": model, "messages": MESSAGES, "max_tokens": 8, **GREEDY}
    text = client.chat.completions.create(**fields).choices[0].message.content
    stop = text[2:4]
    stopped = client.chat.completions.create(stop=[stop], **fields).choices[0]

    assert stop not in stopped.message.content
    assert stopped.finish_reason == "stop"


def test_early_exit_is_controlled_through_extra_body(client, model):
    extra_body = {"early_exit": {"enabled": True, "threshold": 0.3, "return_trace": True}}
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=8, extra_body=extra_body, **GREEDY
    )
    plain = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=8,
        extra_body={"early_exit": {"enabled": False}},
        **GREEDY,
    )

    assert answer.choices[0].message.content == plain.choices[0].message.content
    assert len(answer.choices[0].early_exit_trace) == answer.usage.completion_tokens
    figures = answer.metrics["speculative_decoding"]
    assert sum(figures["acceptance_histogram"]) == figures["num_spec_steps"]


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "context_length_exceeded"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "missing_required_parameter"),
    ],
)
def test_errors_become_the_clients_exceptions(client, model, fields, error, code):
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"model": model, "messages": MESSAGES, **fields})
    assert raised.value.code == code
    assert raised.value.request_id


async def test_the_async_client(server_url, model):
    async with AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as client:
        fields = {"model": model, "messages": MESSAGES, "max_tokens": 8, **GREEDY}
        whole = await client.chat.completions.create(**fields)
        stream = await client.chat.completions.create(stream=True, **fields)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert text == whole.choices[0].message.content


def test_what_evaluation_harnesses_send(client, model):
    scored = client.completions.create(
        model=model, prompt="One two three", max_tokens=0, echo=True, logprobs=1, temperature=0
    )
    (choice,) = scored.choices
    assert (choice.text, choice.finish_reason) == ("One two three", "length")
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    spelled = "".join(logprobs.tokens)
    assert spelled == choice.text
    assert [spelled[at:][:1] for at in logprobs.text_offset] == [t[:1] for t in logprobs.tokens]
    assert scored.usage.completion_tokens == 0


def test_embeddings(client, model):
    texts = ["Grass is green.", "The sky is blue.", "Grass is green."]
    default = client.embeddings.create(model=model, input=texts)
    plain = client.embeddings.create(model=model, input=texts[0], encoding_format="float")
    short = client.embeddings.create(model=model, input=texts[0], dimensions=3)

    one, other, again = (entry.embedding for entry in default.data)
    assert one == again
    assert one != other
    assert one == pytest.approx(plain.data[0].embedding, abs=1e-7)
    for vector in (one, other, short.data[0].embedding):
        assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-5)
    assert len(short.data[0].embedding) == 3
    assert default.usage.prompt_tokens == default.usage.total_tokens > 0
