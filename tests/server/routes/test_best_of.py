"""`best_of` of POST /v1/completions."""

import json

import pytest
from live_server import MODEL

# Log-probabilities of tokens, by seed; for the prompt "b", by seed + 3.
RANKS = {5: -3.0, 6: -1.0, 7: -2.0, 8: -1.0, 9: -0.5, 10: -4.0}


@pytest.fixture
def engine(engine):
    """A fake engine whose outputs begin with their seed, which decides how likely they are."""
    engine.logprob = lambda request: RANKS[request.sampling.seed + _place(request)]
    engine.text = lambda request: f"{request.sampling.seed} of {request.prompt_token_ids[0]}"
    return engine


def _place(request):
    return 3 if request.prompt_token_ids == (98,) else 0


def complete(client, **fields):
    body = {"model": MODEL, "prompt": "a", "max_tokens": 50, "seed": 5, **fields}
    return client.post("/v1/completions", json=body).json()


def texts(answer):
    return [choice["text"] for choice in answer["choices"]]


def test_the_likeliest_come_best_first_and_all_are_counted(client, engine):
    answer = complete(client, best_of=3, n=2)

    assert texts(answer) == ["6 of 97", "7 of 97"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 3 * len("6 of 97")
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert len(engine.requests) == 3


def test_every_prompt_has_its_own_winner_with_its_own_ids(client):
    answer = complete(client, prompt=["a", "b"], best_of=3, logprobs=1, return_token_ids=True)

    assert texts(answer) == ["6 of 97", "6 of 98"]
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [[97], [98]]
    assert answer["choices"][1]["logprobs"]["token_logprobs"][0] == -0.5
    assert answer["choices"][1]["token_ids"] == list(b"6 of 98")


def test_the_winner_has_its_prompts_log_probabilities(client):
    first, winner = (
        complete(client, best_of=number, prompt="ab", echo=True, logprobs=1, prompt_logprobs=1)
        for number in (1, 2)
    )
    assert texts(first)[0].startswith("ab5")
    assert texts(winner)[0].startswith("ab6")
    assert winner["choices"][0]["prompt_logprobs"] == first["choices"][0]["prompt_logprobs"]
    tokens = winner["choices"][0]["logprobs"]["tokens"]
    assert "".join(tokens) == texts(winner)[0]


def test_as_many_as_are_answered_stay_in_order_and_can_be_streamed(client):
    assert texts(complete(client, best_of=2, n=2)) == ["5 of 97", "6 of 97"]
    body = {"model": MODEL, "prompt": "a", "seed": 5, "best_of": 1, "stream": True}
    assert json.loads(client.post("/v1/completions", json=body).text.splitlines()[0][6:])["choices"]


@pytest.mark.parametrize(
    "fields",
    [{"best_of": 1, "n": 2}, {"best_of": 2, "stream": True}, {"best_of": 0}, {"best_of": 129}],
)
def test_what_makes_no_sense_is_refused_by_name(client, fields):
    assert complete(client, **fields)["error"]["param"] == "best_of"
