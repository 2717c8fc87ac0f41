import threading
from dataclasses import replace

import pytest
from live_server import MODEL, fake_app
from starlette.testclient import TestClient

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def tokenize(client, **fields):
    return client.post("/tokenize", json=fields)


def test_a_prompt(client):
    answer = tokenize(client, model=MODEL, prompt="hé", return_token_strs=True).json()

    assert answer == {
        "count": 3,
        "max_model_len": 256,
        "tokens": [104, 195, 169],
        "token_strs": ["<104>", "<195>", "<169>"],
    }


def test_the_model_may_be_left_out_and_a_prompt_may_be_empty(client):
    assert tokenize(client, prompt="").json()["tokens"] == []
    assert tokenize(client, prompt="", model="other").status_code == 404


def test_messages_go_through_the_chat_template(client):
    messages = [{"role": "user", "content": "hi"}]
    whole = tokenize(client, messages=messages).json()["tokens"]
    bare = tokenize(client, messages=messages, add_generation_prompt=False).json()["tokens"]

    assert whole == [*bare, 258]
    assert bytes(bare[1:]) == b"user:hi"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "none"},
        {"continue_final_message": True},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"truncate_prompt_tokens": 5},
        {"truncate_prompt_tokens": 5, "truncation_side": "right"},
        {"truncate_prompt_tokens": -1},
    ],
)
def test_it_gives_the_prompt_that_a_chat_would_have(engine, fields):
    engine.info = replace(engine.info, max_model_len=1024)
    with TestClient(fake_app(engine)) as client:
        tokens = tokenize(client, messages=TURNS, **fields).json()["tokens"]
        variables = engine.tokenizer.variables
        client.post("/v1/chat/completions", json={"model": MODEL, "messages": TURNS, **fields})

    assert tokens == list(engine.requests[0].prompt_token_ids)
    assert variables == engine.tokenizer.variables


def test_a_prompt_is_cut_as_a_completions(client):
    tokens = tokenize(client, prompt="abcdef", truncate_prompt_tokens=2).json()["tokens"]

    assert bytes(tokens) == b"ef"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "x" * (256 * 256 + 1)}, "prompt"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"messages": []}, "messages"),
        (
            {"messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
            "add_special_tokens",
        ),
        ({"prompt": "a", "chat_template": "{{ 1 }}"}, "chat_template"),
        ({"prompt": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"prompt": "a", "truncation_side": "left"}, "truncation_side"),
        ({"prompt": "a", "tools": []}, "tools"),
        ({"prompt": "a", "continue_final_message": False}, "continue_final_message"),
        ({"messages": TURNS, "chat_template_kwargs": {"self": 1}}, "chat_template_kwargs.self"),
        (
            {"messages": TURNS, "add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
        ),
    ],
)
def test_refusals_name_the_field(client, fields, param):
    response = tokenize(client, **fields)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_detokenize(client):
    assert client.post("/detokenize", json={"tokens": [104, 195, 169]}).json() == {"prompt": "hé"}
    assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize("tokens", [[260], [-1], ["a"], [1.5], None])
def test_detokenize_refuses_what_are_no_token_ids(client, tokens):
    response = client.post("/detokenize", json={"tokens": tokens})

    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("tokens")


def test_long_texts_come_back_whole(client):
    text = "long " * 5000
    tokens = tokenize(client, prompt=text).json()["tokens"]

    assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == text


@pytest.mark.parametrize(("length", "num_threads"), [(10, 1), (10_000, 2)])
def test_long_texts_are_encoded_and_spelled_on_a_thread(client, engine, length, num_threads):
    """The event loop serves others meanwhile."""
    tokenizer, threads = engine.tokenizer, {"encode": set(), "spell": set()}
    encode, spell = tokenizer.encode, tokenizer.token_piece

    def encode_and_note(*args, **kwargs):
        threads["encode"].add(threading.current_thread())
        return encode(*args, **kwargs)

    def spell_and_note(token_id):
        threads["spell"].add(threading.current_thread())
        return spell(token_id)

    tokenizer.encode, tokenizer.token_piece = encode_and_note, spell_and_note
    tokenize(client, prompt="a")
    [loops] = threads["encode"]
    tokenize(client, prompt="a" * length, return_token_strs=True)

    assert len(threads["encode"]) == num_threads
    assert (loops in threads["spell"]) == (num_threads == 1)


def test_the_tokenizers_card(client):
    card = client.get("/tokenizer_info").json()

    assert (card["tokenizer_class"], card["eos_token"]) == ("ByteTokenizer", "<257>")
    assert card["chat_template"] == "{{ messages }}"
