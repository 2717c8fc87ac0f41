"""`echo` and `max_tokens: 0` return the prompt, with and without its log-probabilities."""

import json

import pytest
from fake_engine import FakeEngine
from live_server import MODEL
from openai.types import Completion

PATH = "/v1/completions"
HARNESS = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}


@pytest.fixture
def engine():
    """A fake engine that says a character of two bytes and one of one."""
    return FakeEngine(text="é!")


def ask(client, **fields):
    response = client.post(PATH, json={"model": MODEL, "prompt": "hé", **fields})
    assert response.status_code == 200, response.text
    if not fields.get("stream"):
        return response.json()
    lines = response.text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def joined(chunks, index=0):
    """Return the text, log-probabilities and finish reason of one choice of a stream."""
    own = [each for chunk in chunks for each in chunk["choices"] if each["index"] == index]
    logprobs = {}
    for choice in own:
        for name, values in (choice["logprobs"] or {}).items():
            logprobs.setdefault(name, []).extend(values)
    ends = [choice["finish_reason"] for choice in own if choice["finish_reason"]]
    return "".join(choice["text"] for choice in own), logprobs or None, ends


@pytest.mark.parametrize("prompt", ["hé", list("hé".encode())])
def test_the_prompt_begins_the_text(client, engine, prompt):
    answer = ask(client, prompt=prompt, echo=True)

    assert answer["choices"][0]["text"] == "héé!"
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 3
    assert engine.requests[0].sampling.num_prompt_logprobs is None


def test_what_evaluation_harnesses_send(client, engine):
    (choice,) = ask(client, **HARNESS)["choices"]

    assert choice["text"] == "hé\ufffd"
    assert choice["finish_reason"] == "length"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["h", "\ufffd", "\ufffd", "\ufffd"]
    assert logprobs["token_logprobs"] == [None, -0.125, -0.25, -0.5]
    assert logprobs["text_offset"] == [0, 1, 1, 2]
    assert logprobs["top_logprobs"] == [
        None,
        {"x": -0.01, "\ufffd": -0.125},
        {"x": -0.01, "\ufffd": -0.25},
        {"\ufffd": -0.5},
    ]
    assert engine.requests[0].sampling.num_prompt_logprobs == 1
    assert "prompt_logprobs" not in choice


@pytest.mark.parametrize("logprobs", [None, 0, 3])
@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_streams_say_the_same(client, logprobs, max_tokens):
    fields = {"echo": True, "logprobs": logprobs, "max_tokens": max_tokens, "n": 2}
    whole = ask(client, **fields)["choices"]
    chunks = ask(client, stream=True, **fields)

    for index in range(2):
        choice = whole[index]
        text, streamed, ends = joined(chunks, index)
        assert (text, streamed) == (choice["text"], choice["logprobs"])
        assert ends == [choice["finish_reason"]]
        if logprobs is not None:
            lengths = {name: len(values) for name, values in streamed.items()}
            assert set(lengths.values()) == {3 + max_tokens}


def test_no_tokens_to_generate(client, engine):
    answer = ask(client, max_tokens=0)

    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == ("", "length", None)
    usage = Completion.model_validate(answer).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 0)
    assert engine.requests[0].sampling.max_tokens == 0
    (only,) = ask(client, max_tokens=0, stream=True)
    assert only["choices"][0]["finish_reason"] == "length"


def test_only_the_prompts_log_probabilities(client):
    (choice,) = ask(client, max_tokens=0, echo=True, logprobs=0)["choices"]

    assert choice["text"] == "hé"
    assert choice["logprobs"]["token_logprobs"] == [None, -0.125, -0.25]
    assert choice["logprobs"]["top_logprobs"] == [None, {"\ufffd": -0.125}, {"\ufffd": -0.25}]


def test_every_choice_of_every_prompt_has_its_own(client, engine):
    answer = ask(client, prompt=["ab", "xyz"], n=2, echo=True, logprobs=1, max_tokens=0)

    assert [choice["text"] for choice in answer["choices"]] == ["ab", "ab", "xyz", "xyz"]
    lengths = [len(choice["logprobs"]["tokens"]) for choice in answer["choices"]]
    assert lengths == [2, 2, 3, 3]
    asked = [request.sampling.num_prompt_logprobs for request in engine.requests]
    assert sorted(map(str, asked)) == ["1", "1", "None", "None"], "each prompt is read once"


def test_the_best_of_several_begins_with_its_prompt(client, engine):
    engine.logprob = lambda request: -float(request.sampling.seed)
    fields = {"n": 1, "best_of": 3, "seed": 1, "echo": True, "logprobs": 1, "prompt": ["ab", "c"]}
    answer = ask(client, prompt_logprobs=0, **fields)

    assert [choice["text"] for choice in answer["choices"]] == ["abé!", "cé!"]
    ones, others = (choice["logprobs"]["token_logprobs"] for choice in answer["choices"])
    assert (ones[:2], others[0]) == ([None, -0.125], None)
    assert [len(choice["prompt_logprobs"]) for choice in answer["choices"]] == [2, 1]


@pytest.mark.parametrize(("side", "expected"), [("left", "lo"), ("right", "he")])
def test_a_prompt_that_was_cut_comes_back_as_it_was_read(client, side, expected):
    fields = {"prompt": "hello", "truncate_prompt_tokens": 2, "truncation_side": side}
    (choice,) = ask(client, echo=True, logprobs=0, max_tokens=0, **fields)["choices"]

    assert choice["text"] == expected
    assert choice["logprobs"]["tokens"] == list(expected)
    assert choice["logprobs"]["text_offset"] == [0, 1]


def test_control_tokens_of_a_prompt_of_ids_are_not_in_its_text(client):
    fields = {"prompt": [257, 97], "logprobs": 0, "max_tokens": 0}
    (choice,) = ask(client, echo=True, **fields)["choices"]

    assert choice["text"] == "a"
    assert choice["logprobs"]["text_offset"] == [0, 0]


def test_log_probabilities_may_name_tokens_by_id(client):
    (choice,) = ask(client, return_tokens_as_token_ids=True, **HARNESS)["choices"]

    assert choice["logprobs"]["tokens"][0] == "token_id:104"


def test_echo_with_usage_on_every_chunk(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    first, *_, last = ask(client, stream=True, stream_options=options, **HARNESS)

    assert first["usage"]["completion_tokens"] == 1
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 4


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", {"max_completion_tokens": 0}, "max_completion_tokens"),
        ("/v1/chat/completions", {"echo": 1}, "echo"),
        (PATH, {"max_tokens": -1}, "max_tokens"),
        (PATH, {"max_tokens": 0, "min_tokens": 1}, "min_tokens"),
        (PATH, {"echo": "yes"}, "echo"),
    ],
)
def test_refusals_name_the_field(client, path, fields, param):
    prompt = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
    response = client.post(path, json={"model": MODEL, **prompt, **fields})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


CHAT = "/v1/chat/completions"
HALF = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": [{"type": "text", "text": "So: "}]},
]


@pytest.mark.parametrize("more", [{}, {"continue_final_message": True}])
def test_a_chats_answer_begins_with_the_last_turn_where_it_is_the_assistants(client, more):
    body = {"model": MODEL, "messages": HALF, "logprobs": True, "n": 2, **more}
    plain = client.post(CHAT, json=body).json()
    echoed = client.post(CHAT, json={**body, "echo": True}).json()

    for without, choice in zip(plain["choices"], echoed["choices"], strict=True):
        assert choice["message"].pop("content") == "So: " + without["message"].pop("content")
        assert choice == without, "the log-probabilities are those of what was generated"
    assert echoed["usage"] == plain["usage"]


def test_a_chats_stream_says_the_echo_after_the_role(client):
    body = {"model": MODEL, "messages": HALF, "stream": True, "echo": True}
    *events, done = client.post(CHAT, json=body).text.split("\n\n")[:-1]
    chunks = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]

    assert [chunk["delta"] for chunk in chunks[:2]] == [
        {"role": "assistant", "content": ""},
        {"content": "So: "},
    ]
    assert chunks[1]["logprobs"] is None
    assert done == "data: [DONE]"


def test_another_roles_turn_is_not_echoed(client):
    body = {"model": MODEL, "messages": HALF[:1], "echo": True}

    assert client.post(CHAT, json=body).json()["choices"][0]["message"]["content"] == "é!"
