"""What a client may pass to the chat template."""

import pytest
from live_server import MODEL

from engine import Tokenizer

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
GENERATION_PROMPT = 258


def ask(client, **fields):
    return client.post("/v1/chat/completions", json={"model": MODEL, "messages": TURNS, **fields})


def test_variables_reach_the_template(client, engine):
    variables = {"enable_thinking": False, "deep": {"er": [1, None]}}

    assert ask(client, chat_template_kwargs=variables).status_code == 200
    assert engine.tokenizer.variables == variables


@pytest.mark.parametrize(
    ("fields", "is_prompted", "variables"),
    [
        ({}, True, {}),
        ({"add_generation_prompt": True}, True, {}),
        ({"add_generation_prompt": False}, False, {}),
        ({"continue_final_message": True}, False, {"continue_final_message": True}),
        (
            {"continue_final_message": True, "add_generation_prompt": False},
            False,
            {"continue_final_message": True},
        ),
    ],
)
def test_how_the_prompt_ends(client, engine, fields, is_prompted, variables):
    assert ask(client, **fields).status_code == 200
    assert (engine.requests[0].prompt_token_ids[-1] == GENERATION_PROMPT) == is_prompted
    assert engine.tokenizer.variables == variables


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": {"a": 1, "tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"chat_template_kwargs": {"bos_token": ""}}, "chat_template_kwargs.bos_token"),
        ({"chat_template_kwargs": {"a": "x" * 65536}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {str(i): i for i in range(65)}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"documents": [{"title": "a", "text": "b"}]}, "documents"),
    ],
)
def test_what_is_not_the_clients_to_say_is_refused_by_name(client, fields, param):
    response = ask(client, **fields)

    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_no_parameter_of_the_renderer_can_be_set_as_a_variable(client):
    """The parameters are those of the installed release of transformers."""
    import inspect

    from transformers import PreTrainedTokenizerFast

    names = {
        *inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters,
        *inspect.signature(Tokenizer.apply_chat_template).parameters,
    } - {"kwargs"}
    for name in sorted(names):
        error = ask(client, chat_template_kwargs={name: True}).json()["error"]
        assert error["param"] == f"chat_template_kwargs.{name}"
