import asyncio
import base64
import struct

import httpx
import openai
import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app
from openai import OpenAI
from starlette.testclient import TestClient

from engine.errors import EngineOverloaded
from engine.request import FinishReason
from server.protocol.embeddings import Embeddings
from server.routes import embeddings


def embed(client, **fields):
    return client.post("/v1/embeddings", json={"model": MODEL, "input": "abc", **fields})


def length(vector):
    return sum(value * value for value in vector) ** 0.5


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("ab", [(97, 98)]),
        (["a", "b"], [(97,), (98,)]),
        ([97, 98], [(97, 98)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
def test_inputs_in_every_form(client, engine, given, prompts):
    answer = embed(client, input=given).json()

    assert [request.prompt_token_ids for request in engine.requests] == prompts
    assert {request.sampling.max_tokens for request in engine.requests} == {0}
    assert [entry["index"] for entry in answer["data"]] == list(range(len(prompts)))
    num_tokens = sum(map(len, prompts))
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_embeddings_have_length_one_also_when_cut(client):
    whole = embed(client).json()["data"][0]["embedding"]
    cut = embed(client, dimensions=2).json()["data"][0]["embedding"]

    assert (len(whole), len(cut)) == (4, 2)
    assert length(whole) == pytest.approx(1)
    assert length(cut) == pytest.approx(1)
    assert cut[0] / cut[1] == pytest.approx(whole[0] / whole[1])


def test_base64_is_the_same_numbers(client):
    plain = embed(client).json()["data"][0]["embedding"]
    data = embed(client, encoding_format="base64").json()["data"][0]["embedding"]

    assert struct.unpack("<4f", base64.b64decode(data)) == tuple(plain)


def test_pooling(client, engine):
    embed(client)
    embed(client, pooling="last")

    assert [request.pooling for request in engine.requests] == ["mean", "last"]


def test_the_servers_own_pooling(engine):
    with TestClient(fake_app(engine, pooling_type="last")) as client:
        embed(client)
        embed(client, pooling="mean")

    assert [request.pooling for request in engine.requests] == ["last", "mean"]


def test_as_long_as_they_come(client):
    vector = embed(client, normalize=False, dimensions=3).json()["data"][0]["embedding"]

    assert vector == [97, 3, 4]


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 2}, "bc"),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, "ab"),
        ({"truncate_prompt_tokens": -1, "input": "x" * 300}, "x" * 256),
    ],
)
def test_inputs_are_cut_on_request(client, engine, fields, kept):
    answer = embed(client, **fields).json()

    assert engine.requests[0].prompt_token_ids == tuple(kept.encode())
    assert answer["usage"]["prompt_tokens"] == len(kept)


def test_priority_and_salt_reach_the_engine(client, engine):
    embed(client, priority=-2, cache_salt="s", user="u")

    assert (engine.requests[0].priority, engine.requests[0].cache_salt) == (-2, "s")


def test_another_model_is_not_found(client):
    response = embed(client, model="other")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_many_inputs_come_in_order_and_a_few_at_a_time(engine):
    engine.token_delay_s = 0.002
    most_open = 0
    admit = engine.admit

    def counting(requests):
        nonlocal most_open
        slots = admit(requests)
        most_open = max(most_open, len(engine.open_ids))
        return slots

    engine.admit = counting
    inputs = [[1 + index % 250] for index in range(300)]
    with TestClient(fake_app(engine)) as client:
        data = embed(client, input=inputs).json()["data"]

    assert most_open == 16
    first = [entry["embedding"][0] / entry["embedding"][1] * 3 for entry in data]
    assert first == pytest.approx([token_id for (token_id,) in inputs], rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input"),
        ({"input": ["a", [1]]}, "input"),
        ({"input": [300]}, "input"),
        ({"input": "x" * 257}, "input"),
        ({"input": [[1]] * 2049}, "input"),
        ({"input": "x" * 100_000}, "input"),
        ({"dimensions": 5}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"pooling": "cls"}, "pooling"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncation_side": "left"}, "truncation_side"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_refusals_name_the_field(client, fields, param):
    response = embed(client, **fields)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("behaviour", "status"),
    [
        ({"refusal": EngineOverloaded("full")}, 503),
        ({"finish_with": FinishReason.ERROR, "failure_after": -1}, 500),
        ({"finish_with": FinishReason.ABORT, "failure_after": -1}, 503),
    ],
)
def test_one_failure_ends_all(behaviour, status):
    engine = FakeEngine(**behaviour)
    with TestClient(fake_app(engine)) as client:
        assert embed(client, input=["a", "b"]).status_code == status
    assert not engine.open_ids


def test_a_client_that_leaves_frees_everything(engine, live_url):
    engine.token_delay_s = 0.5
    body = {"model": MODEL, "input": ["a"] * 40}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{live_url}/v1/embeddings", json=body, timeout=httpx.Timeout(5, read=0.2))
    engine.token_delay_s = 0
    assert httpx.post(f"{live_url}/v1/embeddings", json=body | {"input": "a"}).status_code == 200

    assert len(engine.requests) < 41
    assert not engine.open_ids


def test_openais_client_decodes_its_own_default(live_url):
    with OpenAI(base_url=f"{live_url}/v1", api_key="none", max_retries=0) as client:
        default = client.embeddings.create(model=MODEL, input=["a", "b"])
        plain = client.embeddings.create(model=MODEL, input=["a", "b"], encoding_format="float")
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model=MODEL, input="a", dimensions=9)

    assert [entry.embedding for entry in default.data] == [
        pytest.approx(entry.embedding) for entry in plain.data
    ]


@pytest.mark.parametrize("given", ["abc", ["a", "b", "c"]])
@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_the_answer_is_the_documented_json(client, given, encoding_format):
    answer = embed(client, input=given, encoding_format=encoding_format)

    assert answer.headers["content-type"] == "application/json"
    assert Embeddings.model_validate_json(answer.content).model_dump_json() == answer.text


async def test_others_have_their_turn_while_a_long_answer_is_rendered(engine, monkeypatch):
    """So that thousands of vectors do not hold up the streams."""
    order = []

    def render(*_):
        for piece in (b"1", b"2", b"3"):
            order.append(piece)
            yield piece

    async def have_turns():
        while True:
            if order:
                order.append("turn")
            await asyncio.sleep(0)

    monkeypatch.setattr(embeddings, "render_embeddings", render)
    app = fake_app(engine)
    async with app.router.lifespan_context(app):
        others = asyncio.create_task(have_turns())
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            body = {"model": MODEL, "input": "a"}
            while (answer := await client.post("/v1/embeddings", json=body)).status_code == 503:
                await asyncio.sleep(0.01)  # the model is still loading
        others.cancel()

    assert answer.text == "123"
    for piece, following in ((b"1", b"2"), (b"2", b"3")):
        assert "turn" in order[order.index(piece) : order.index(following)]
