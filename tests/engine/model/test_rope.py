"""Rotary tables, element for element against transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import ModelLoadError
from engine.model.rope import rope_tables
from engine.model.spec import ModelSpec

pytestmark = pytest.mark.torch

_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_FACTORS = [1.0 + index / 4 for index in range(16)]
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": _FACTORS,
    "long_factor": _FACTORS,
    "factor": 1.0,
    "attention_factor": 1.0,
    "original_max_position_embeddings": 512,
}
_SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    _LLAMA3,
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2}
    | {"original_max_position_embeddings": 256, "truncate": False},
    _LONGROPE,
]


def _config(rope: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 100,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    } | rope


def _spec(directory: Path, config: dict[str, Any]) -> ModelSpec:
    (directory / "config.json").write_text(json.dumps(config))
    return ModelSpec.from_directory(directory)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("scaling", _SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_equal_to_transformers(tmp_path: Path, scaling: dict[str, Any], theta: float) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = _config({"rope_parameters": scaling | {"rope_theta": theta}})
    reference = LlamaRotaryEmbedding(LlamaConfig(**config))
    expected_cos, expected_sin = reference(torch.zeros(1), torch.arange(512)[None])
    cos, sin = rope_tables(_spec(tmp_path, config), 512)
    assert torch.equal(cos, expected_cos[0, :, :16])
    assert torch.equal(sin, expected_sin[0, :, :16])


def test_old_spelling(tmp_path: Path) -> None:
    scaling = {key: value for key, value in _LLAMA3.items() if key != "rope_type"}
    old = {"rope_theta": 500000.0, "rope_scaling": scaling | {"type": "llama3"}}
    new = {"rope_parameters": _LLAMA3 | {"rope_theta": 500000.0}}
    assert _spec(tmp_path, _config(old)).rope == _spec(tmp_path, _config(new)).rope


def test_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"'dynamic'.*default, linear, llama3"):
        _spec(tmp_path, _config({"rope_scaling": {"type": "dynamic", "factor": 2.0}}))
    with pytest.raises(ModelLoadError, match="partial_rotary_factor"):
        _spec(tmp_path, _config({"partial_rotary_factor": 0.5}))
    different = _LONGROPE | {"long_factor": [2.0] * 16}
    with pytest.raises(ModelLoadError, match="different short and long"):
        _spec(tmp_path, _config({"rope_scaling": different}))
