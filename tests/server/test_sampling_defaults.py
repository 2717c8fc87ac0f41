import json
from pathlib import Path

import pytest

from engine.errors import ModelLoadError
from server.sampling_defaults import SamplingDefaults, sampling_defaults

OWN = {"temperature": 0.6, "top_p": 0.9, "top_k": 20}


@pytest.fixture
def model(tmp_path):
    """Return what makes a model's directory with such a generation_config.json."""

    def make(content: object) -> Path:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "generation_config.json").write_text(text)
        return tmp_path

    return make


def test_those_of_the_class_are_openais():
    assert SamplingDefaults().changed() == {}


def test_a_models_own_file_is_read_unless_told_not_to(model):
    directory = model(OWN)

    assert sampling_defaults("auto", directory, {}).changed() == OWN
    assert sampling_defaults("none", directory, {}) == SamplingDefaults()


def test_a_model_without_a_file_has_openais(tmp_path):
    assert sampling_defaults("auto", tmp_path, {}) == SamplingDefaults()


def test_another_file_takes_the_place_of_the_models(model, tmp_path):
    (tmp_path / "other.json").write_text('{"min_p": 0.1}')

    assert sampling_defaults(tmp_path / "other.json", model(OWN), {}).changed() == {"min_p": 0.1}


@pytest.mark.parametrize(("source", "rest"), [("auto", {"top_p": 0.9, "top_k": 20}), ("none", {})])
def test_overrides_win_and_leave_the_rest(model, source, rest):
    overrides = {"temperature": 0.2, "max_new_tokens": 64}

    assert sampling_defaults(source, model(OWN), overrides).changed() == {**rest, **overrides}


def test_an_override_of_null_is_openais_default(model):
    defaults = sampling_defaults("auto", model(OWN), {"temperature": None})

    assert defaults.changed() == {"top_p": 0.9, "top_k": 20}


@pytest.mark.parametrize(
    "content",
    [
        {"do_sample": False},
        {"do_sample": True, "eos_token_id": [1], "transformers_version": "5.17.0"},
        {"temperature": None, "max_new_tokens": None},
        {"max_length": 20, "num_beams": 4, "no_repeat_ngram_size": 2, "typical_p": 0.5},
        {"top_k": -1},
        {"top_k": 0, "temperature": 1, "top_p": 1},
    ],
)
def test_keys_that_vllm_does_not_take_nulls_and_openais_values_change_nothing(model, content):
    assert sampling_defaults("auto", model(content), {}) == SamplingDefaults()


def test_do_sample_of_false_keeps_the_temperature_as_in_vllm(model):
    directory = model({"do_sample": False, "temperature": 0.6})

    assert sampling_defaults("auto", directory, {}).temperature == 0.6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"temperature": 2.5}, "temperature: input should be less than or equal to 2"),
        ({"top_p": 0.0}, "top_p: input should be greater than 0"),
        ({"top_k": "20"}, "top_k: input should be a valid integer"),
        ({"repetition_penalty": False}, "repetition_penalty: input should be a valid number"),
        ({"max_new_tokens": -1}, "max_new_tokens: input should be greater than or equal to 1"),
        ('{"min_p": NaN}', "min_p: input should be"),
    ],
)
def test_a_value_that_no_request_may_have_is_an_error_with_its_file_key_and_ways_out(
    model, content, message
):
    directory = model(content)

    with pytest.raises(ModelLoadError) as error:
        sampling_defaults("auto", directory, {})
    assert str(error.value).startswith(f"{directory / 'generation_config.json'}: {message}")
    assert str(error.value).endswith("--generation-config none serves with OpenAI's defaults.")
    assert sampling_defaults("none", directory, {}) == SamplingDefaults()


def test_an_override_replaces_a_value_that_could_not_be_used(model):
    assert sampling_defaults("auto", model({"top_k": 20.5}), {"top_k": 20}).top_k == 20
