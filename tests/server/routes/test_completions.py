import pytest
from fake_engine import EXIT_LAYER, NUM_LAYERS
from live_server import MODEL
from openai.types import Completion

from engine.errors import TooManyChoices


def complete(client, **fields):
    body = {"model": MODEL, "prompt": "abc", "max_tokens": 5, **fields}
    return client.post("/v1/completions", json=body)


def test_a_whole_completion(client, engine):
    answer = complete(client, max_tokens=100).json()

    assert answer["id"].startswith("cmpl-")
    assert (answer["object"], answer["model"]) == ("text_completion", MODEL)
    assert answer["choices"][0] == {
        "index": 0,
        "text": "Hello world!",
        "logprobs": None,
        "finish_reason": "stop",
    }
    usage = Completion.model_validate(answer).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 12, 15)
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.accepted_prediction_tokens == 0
    assert usage.completion_tokens_details.rejected_prediction_tokens == 0
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert engine.requests[0].prompt_token_ids == tuple(b"abc")


def test_max_tokens_ends_it_with_length(client):
    choice = complete(client).json()["choices"][0]

    assert (choice["text"], choice["finish_reason"]) == ("Hello", "length")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [(97, 98)]),
        (["a", "b"], [(97,), (98,)]),
        ([97, 98], [(97, 98)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
def test_prompts_in_every_form(client, engine, prompt, expected):
    answer = complete(client, prompt=prompt).json()

    assert sorted(request.prompt_token_ids for request in engine.requests) == expected
    assert len(answer["choices"]) == len(expected)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, expected))


def test_choices_are_numbered_over_prompts_and_n(client, engine):
    engine.text = lambda request: f"{request.prompt_token_ids[0]}/{request.sampling.seed}"
    answer = complete(client, prompt=["a", "b"], n=2, seed=5, max_tokens=50).json()

    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == ["97/5", "97/6", "98/5", "98/6"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 2
    assert "metrics" not in answer


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"prompt": ["a"] * 6}, "prompt"),
        ("/v1/completions", {"prompt": "a", "n": 6}, "n"),
        ("/v1/completions", {"prompt": "a", "best_of": 6}, "best_of"),
        ("/v1/embeddings", {"input": ["a"] * 6}, "input"),
    ],
)
def test_more_than_the_queue_ever_holds_is_the_fault_of_the_field_that_asks_for_it(
    client, engine, path, fields, param
):
    engine.refusal = TooManyChoices("At most 5 choices can be made at once.", param="n")
    response = client.post(path, json={"model": MODEL, **fields})

    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_logprobs_include_the_chosen_token(client):
    logprobs = complete(client, logprobs=2, max_tokens=2).json()["choices"][0]["logprobs"]

    assert logprobs["tokens"] == ["H", "e"]
    assert logprobs["token_logprobs"] == [-0.5, -0.5]
    assert logprobs["top_logprobs"] == [{"H": -0.5, "a": -1.0}, {"e": -0.5, "a": -1.0}]
    assert logprobs["text_offset"] == [0, 1]


def test_a_single_choice_has_draft_figures_in_vllms_shape(client):
    metrics = complete(client, max_tokens=100).json()["metrics"]

    figures = metrics["speculative_decoding"]
    histogram = figures["acceptance_histogram"]
    assert len(histogram) == figures["num_spec_tokens"] + 1
    assert sum(histogram) == figures["num_spec_steps"]
    accepted = sum(place * count for place, count in enumerate(histogram))
    assert accepted == figures["num_accepted_draft_tokens"] <= figures["num_draft_tokens"]
    assert figures["mean_acceptance_length"] == 1 + accepted / figures["num_spec_steps"]
    assert metrics["early_exit"]["accepted_by_layer"] == {str(EXIT_LAYER): 5}
    assert metrics["early_exit"]["reason"] == "drafting"


def test_without_early_exit_nothing_is_drafted_and_it_says_why(client):
    metrics = complete(client, early_exit={"enabled": False}).json()["metrics"]

    assert metrics["speculative_decoding"]["num_draft_tokens"] == 0
    assert metrics["early_exit"]["reason"] == "off_by_request"


def test_a_trace_says_where_each_token_left(client):
    answer = complete(client, early_exit={"return_trace": True}, max_tokens=2).json()

    assert answer["choices"][0]["early_exit_trace"] == [
        {
            "token_id": ord("H"),
            "token": "H",
            "bytes": [72],
            "exit_layer": EXIT_LAYER,
            "confidence": 0.9,
            "source": "head",
            "accepted": True,
            "rejected": [],
        },
        {
            "token_id": ord("e"),
            "token": "e",
            "bytes": [101],
            "exit_layer": NUM_LAYERS,
            "confidence": None,
            "source": "model",
            "accepted": True,
            "rejected": [
                {
                    "token_id": 63,
                    "token": "?",
                    "bytes": [63],
                    "exit_layer": EXIT_LAYER,
                    "confidence": 0.6,
                    "source": "head",
                }
            ],
        },
    ]


def test_the_context_is_a_limit(client):
    error = complete(client, max_tokens=254).json()["error"]

    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


def test_a_hopelessly_long_text_is_refused_unread(client, engine):
    error = complete(client, prompt="x" * (256 * 256 + 1)).json()["error"]

    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(("side", "kept"), [(None, b"def"), ("left", b"def"), ("right", b"abc")])
def test_a_prompt_is_cut_where_asked(client, engine, side, kept):
    body = {"model": MODEL, "prompt": "abcdef", "truncate_prompt_tokens": 3}
    sides = {"truncation_side": side} if side else {}
    answer = client.post("/v1/completions", json={**body, **sides}).json()

    assert bytes(engine.requests[0].prompt_token_ids) == kept
    assert answer["usage"]["prompt_tokens"] == 3


def test_a_prompt_is_cut_to_what_the_model_takes(client, engine):
    complete(client, prompt="x" * 300, truncate_prompt_tokens=-1, max_tokens=5)

    assert len(engine.requests[0].prompt_token_ids) == 256 - 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"truncation_side": "left"}, "truncation_side"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"spaces_between_special_tokens": False}, "spaces_between_special_tokens"),
        ({"metadata": {"a": 1}}, "metadata.a"),
    ],
)
def test_what_makes_no_sense_is_named(client, fields, param):
    assert complete(client, **fields).json()["error"]["param"] == param


def test_what_only_a_providers_books_are_told_changes_nothing(client):
    told = {"metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k", "user": "u"}
    answer = complete(client, spaces_between_special_tokens=True, **told).json()

    assert answer["choices"] == complete(client).json()["choices"]


@pytest.mark.parametrize(
    ("field", "value"), [("store", True), ("service_tier", "flex"), ("verbosity", "low")]
)
def test_what_is_not_offered_is_named(client, field, value):
    body = {"model": MODEL, "prompt": "a", field: value}
    error = client.post("/v1/completions", json=body).json()["error"]

    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
