"""`prompt_logprobs` on both endpoints, in vLLM's shape."""

import threading

import httpx
import pytest
from live_server import MODEL

from server.render.completions import CompletionRenderer

PATHS = ["/v1/completions", "/v1/chat/completions"]


def post(client, path, **fields):
    turns = [{"role": "user", "content": "a"}]
    prompt = {"messages": turns} if "chat" in path else {"prompt": "abc"}
    return client.post(path, json={"model": MODEL, "max_tokens": 1, **prompt, **fields})


def test_completions_have_them_in_every_choice(client, engine):
    answer = post(client, PATHS[0], prompt_logprobs=2, n=2).json()

    own = {"logprob": -0.125, "rank": 7, "decoded_token": "b"}
    top = {
        "120": {"logprob": -0.01, "rank": 1, "decoded_token": "x"},
        "121": {"logprob": -0.02, "rank": 2, "decoded_token": "y"},
    }
    for choice in answer["choices"]:
        first, second, third = choice["prompt_logprobs"]
        assert first is None
        assert second == {"98": own} | top
        assert list(third) == ["99", "120", "121"]
        assert choice["logprobs"] is None
    assert "prompt_logprobs" not in answer


def test_chats_have_them_at_the_root(client, engine):
    answer = post(client, PATHS[1], prompt_logprobs=0, n=2).json()

    prompt = engine.requests[0].prompt_token_ids
    assert [list(entry or ()) for entry in answer["prompt_logprobs"]] == [
        [],
        *([str(token_id)] for token_id in prompt[1:]),
    ]
    assert len(answer["choices"]) == 2
    asked = [request.sampling.num_prompt_logprobs for request in engine.requests]
    assert sorted(map(str, asked)) == ["0", "None"]


def test_a_prompts_own_token_is_not_told_twice(client):
    choice = post(client, PATHS[0], prompt="ax", prompt_logprobs=1).json()["choices"][0]

    assert choice["prompt_logprobs"][1] == {
        "120": {"logprob": -0.125, "rank": 7, "decoded_token": "x"}
    }


def test_there_are_no_more_than_asked_for_where_an_echo_has_more(client):
    fields = {"echo": True, "logprobs": 3, "prompt_logprobs": 1}
    choice = post(client, PATHS[0], **fields).json()["choices"][0]

    assert [list(entry or ()) for entry in choice["prompt_logprobs"]] == [
        [],
        ["98", "120"],
        ["99", "120"],
    ]


def test_echoed_ones_are_as_many_as_asked_for(client, engine):
    fields = {"echo": True, "logprobs": 1, "prompt_logprobs": 3}
    choice = post(client, PATHS[0], **fields).json()["choices"][0]

    assert engine.requests[0].sampling.num_prompt_logprobs == 3
    assert choice["logprobs"]["top_logprobs"][1] == {"x": -0.01, "b": -0.125}
    assert len(choice["prompt_logprobs"][1]) == 4


@pytest.mark.parametrize("path", PATHS)
def test_unasked_there_are_none(client, path):
    assert "prompt_logprobs" not in post(client, path).text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_logprobs": -1},
        {"prompt_logprobs": 21},
        {"prompt_logprobs": True},
        {"prompt_logprobs": 0, "stream": True},
        {"prompt_logprobs": 1, "stream": True},
    ],
)
def test_refusals_name_the_field(client, path, fields):
    response = post(client, path, **fields)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt_logprobs"


@pytest.mark.parametrize("stream", [False, True])
def test_long_ones_are_rendered_off_the_loop(live_url, monkeypatch, stream):
    threads = []
    render = CompletionRenderer._choice

    def noting(self, *arguments, **options):
        threads.append(threading.current_thread())
        return render(self, *arguments, **options)

    monkeypatch.setattr(CompletionRenderer, "_choice", noting)
    for length in (3, 250):
        with httpx.Client(base_url=live_url) as client:
            fields = {"prompt": "y" * length, "echo": True, "logprobs": 20, "stream": stream}
            text = post(client, PATHS[0], **fields).text
        assert text.count('"y":') == length - 1
    assert threads[0] is not threads[1]
