from dataclasses import replace

import pytest

from engine.errors import PromptTooLong, RequestError
from server.convert import RequestLimits, check_options, to_generation_requests, truncated
from server.protocol.chat import ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from server.sampling_defaults import SamplingDefaults

LIMITS = RequestLimits(max_model_len=100, vocab_size=50, max_draft_tokens=3, max_logprobs=5)


def convert(prompts=((1, 2, 3),), limits=LIMITS, **fields):
    body = CompletionRequest.model_validate({"model": "m", "prompt": "a", **fields})
    return to_generation_requests(body, prompts, limits, answer_id="cmpl-x", seed=1000)


def convert_chat(prompt=(1, 2, 3), limits=LIMITS, **fields):
    messages = [{"role": "user", "content": "a"}]
    body = ChatCompletionRequest.model_validate({"model": "m", "messages": messages, **fields})
    return to_generation_requests(body, [prompt], limits, answer_id="chatcmpl-x", seed=1000)


def test_allowed_token_ids_are_sorted_and_checked():
    assert convert(allowed_token_ids=[7, 3, 7])[0].sampling.allowed_token_ids == (3, 7)
    with pytest.raises(RequestError, match="allowed_token_ids"):
        convert(allowed_token_ids=[50])


def test_defaults_are_openais():
    (request,) = convert()

    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 1.0, 16)
    assert sampling.num_logprobs is None
    assert request.early_exit.enabled


MODELS_OWN = {"temperature": 0.6, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1}
OPENAIS = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def with_defaults(**defaults):
    return replace(LIMITS, defaults=SamplingDefaults(**defaults))


@pytest.mark.parametrize("convert_one", [convert, convert_chat])
@pytest.mark.parametrize("name", MODELS_OWN)
def test_what_a_request_leaves_out_is_the_models_own_and_what_it_says_holds(convert_one, name):
    limits = with_defaults(**MODELS_OWN)

    for given in ({}, {name: None}):
        (request,) = convert_one(limits=limits, **given)
        assert {each: getattr(request.sampling, each) for each in MODELS_OWN} == MODELS_OWN
    (request,) = convert_one(limits=limits, **{name: OPENAIS[name]})
    assert getattr(request.sampling, name) == OPENAIS[name]


def test_every_prompt_and_choice_has_the_models_own_defaults():
    requests = convert(prompts=[[1], [2]], n=2, stream=True, limits=with_defaults(temperature=0.6))

    assert [request.sampling.temperature for request in requests] == [0.6] * 4


@pytest.mark.parametrize("top_k", [-1, 0, 50, 10_000])
def test_a_models_top_k_of_everything_is_off(top_k):
    (request,) = convert(limits=with_defaults(top_k=top_k))

    assert request.sampling.top_k == 0


def test_a_models_temperature_near_zero_is_greedy():
    assert convert(limits=with_defaults(temperature=1e-9))[0].sampling.temperature == 0.0


@pytest.mark.parametrize(
    ("bound", "of_chat", "of_completion"), [(5, 5, 5), (20, 20, 16), (500, 97, 16)]
)
def test_max_new_tokens_bounds_the_default_of_max_tokens(bound, of_chat, of_completion):
    limits = with_defaults(max_new_tokens=bound)

    assert convert_chat(limits=limits)[0].sampling.max_tokens == of_chat
    assert convert(limits=limits)[0].sampling.max_tokens == of_completion
    for one in (convert, convert_chat):
        assert one(limits=limits, max_tokens=30)[0].sampling.max_tokens == 30


def test_every_sampling_field_arrives():
    (request,) = convert(
        temperature=0.5,
        top_p=0.9,
        top_k=7,
        min_p=0.1,
        seed=5,
        max_tokens=9,
        min_tokens=2,
        stop=["x", "yz"],
        stop_token_ids=[4],
        include_stop_str_in_output=True,
        ignore_eos=True,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        logit_bias={"3": -100},
        logprobs=2,
    )

    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (
        0.5,
        0.9,
        7,
        0.1,
    )
    assert (sampling.seed, sampling.max_tokens, sampling.min_tokens) == (5, 9, 2)
    assert (sampling.stop, sampling.stop_token_ids) == (("x", "yz"), (4,))
    assert sampling.include_stop_str_in_output
    assert sampling.ignore_eos
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.1, 0.2)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.1, {3: -100})
    assert sampling.num_logprobs == 2


def test_a_clients_seed_gives_every_prompt_of_a_batch_the_same_seeds_as_alone():
    requests = convert(prompts=[[1], [2, 3]], n=2, seed=7)

    assert [request.sampling.seed for request in requests] == [7, 8, 7, 8]
    assert [request.prompt_token_ids for request in requests] == [(1,), (1,), (2, 3), (2, 3)]
    assert len({request.request_id for request in requests}) == 4


def test_seeds_are_unsigned_for_the_engine_and_drawn_when_missing():
    assert convert(seed=-1)[0].sampling.seed == 2**64 - 1
    requests = convert(prompts=[[1], [1]], n=2)  # equal prompts have different outputs
    assert [request.sampling.seed for request in requests] == [1000, 1001, 1002, 1003]


@pytest.mark.parametrize("temperature", [0, 1e-9])
def test_a_temperature_near_zero_is_greedy(temperature):
    assert convert(temperature=temperature)[0].sampling.temperature == 0.0


@pytest.mark.parametrize("top_k", [-1, 0, 50, 10_000])
def test_top_k_of_everything_is_off(top_k):
    assert convert(top_k=top_k)[0].sampling.top_k == 0


def test_chat_may_fill_the_context_by_default_and_completions_take_what_is_left_of_16():
    assert convert_chat()[0].sampling.max_tokens == 97
    assert convert(prompts=[[1] * 90])[0].sampling.max_tokens == 10


@pytest.mark.parametrize("max_tokens", [98, 2**31 - 1])
def test_prompt_and_output_must_fit_the_context(max_tokens):
    with pytest.raises(PromptTooLong) as error:
        convert(max_tokens=max_tokens)
    assert (error.value.param, error.value.code) == ("prompt", "context_length_exceeded")


def test_a_prompt_that_fills_the_context_is_too_long_whatever_was_asked():
    with pytest.raises(PromptTooLong) as error:
        convert_chat(prompt=[1] * 100)
    assert error.value.param == "messages"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_both_names_of_max_tokens_count(field):
    assert convert_chat(**{field: 5})[0].sampling.max_tokens == 5


@pytest.mark.parametrize(
    ("fields", "num_logprobs"),
    [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3)],
)
def test_chat_logprobs(fields, num_logprobs):
    assert convert_chat(**fields)[0].sampling.num_logprobs == num_logprobs


@pytest.mark.parametrize(
    ("fields", "num_prompt_logprobs"),
    [
        ({"logprobs": 2}, None),
        ({"echo": True}, None),
        ({"echo": True, "logprobs": 0}, 0),
        ({"echo": True, "logprobs": 2, "prompt_logprobs": 1}, 2),
        ({"echo": True, "logprobs": 1, "prompt_logprobs": 2}, 2),
    ],
)
def test_a_prompts_logprobs_are_as_many_as_the_most_that_is_asked(fields, num_prompt_logprobs):
    assert convert(**fields)[0].sampling.num_prompt_logprobs == num_prompt_logprobs


def test_logprobs_are_limited():
    assert convert(logprobs=5, prompt_logprobs=5)[0].sampling.num_logprobs == 5
    for one, fields, param in (
        (convert, {"logprobs": 6}, "logprobs"),
        (convert, {"prompt_logprobs": 6}, "prompt_logprobs"),
        (convert_chat, {"logprobs": True, "top_logprobs": 6}, "top_logprobs"),
        (convert_chat, {"prompt_logprobs": 6}, "prompt_logprobs"),
    ):
        with pytest.raises(RequestError) as error:
            one(**fields)
        assert error.value.param == param


def test_a_bias_is_from_minus_to_plus_100():
    bias = {"0": -100, "49": 100}
    assert convert(logit_bias=bias)[0].sampling.logit_bias == {0: -100, 49: 100}
    for value in (-100.5, 100.5):
        with pytest.raises(RequestError, match="values should be from -100 to 100"):
            convert(logit_bias={"0": value})


def test_choices_are_limited_over_all_prompts():
    body = {"model": "m", "prompt": ["a"] * 8, "n": 128}
    check_options(CompletionRequest.model_validate(body))
    with pytest.raises(RequestError) as error:
        check_options(CompletionRequest.model_validate({**body, "prompt": ["a"] * 9}))
    assert error.value.param == "n"


def test_a_prompt_is_cut_to_one_token_at_least():
    body = {"model": "m", "prompt": "a", "truncate_prompt_tokens": -1, "max_tokens": 100}
    assert truncated(CompletionRequest.model_validate(body), [[1, 2, 3]], LIMITS) == [[3]]


def test_early_exit_options_arrive_and_the_server_caps_the_drafts():
    asked = {"enabled": False, "threshold": 0.5, "max_draft_tokens": 16, "return_trace": True}
    options = convert(early_exit=asked)[0].early_exit

    assert (options.enabled, options.threshold, options.return_trace) == (False, 0.5, True)
    assert options.max_draft_tokens == 3


@pytest.mark.parametrize(("stream", "interval"), [(True, 4), (False, 0), (None, 0)])
def test_streams_come_in_intervals_and_whole_answers_in_one(stream, interval):
    (request,) = convert(stream=stream, limits=replace(LIMITS, stream_interval=4))

    assert request.output_interval == interval
    if stream:
        (request,) = convert(stream=True, stream_interval=7)
        assert request.output_interval == 7
