"""What config.json says, family by family, and what we refuse to guess."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelLoadError
from engine.model.spec import ModelSpec

_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}


def _spec(directory: Path, architecture: str, **config: Any) -> ModelSpec:
    content = _BASE | {"architectures": [f"{architecture}ForCausalLM"]} | config
    (directory / "config.json").write_text(json.dumps(content))
    return ModelSpec.from_directory(directory)


@pytest.mark.parametrize(
    ("architecture", "config", "expected"),
    [
        ("Llama", {}, (False, False, False, False)),
        ("Llama", {"attention_bias": True, "mlp_bias": True}, (True, True, True, False)),
        ("Mistral", {}, (False, False, False, False)),
        ("Qwen2", {}, (True, False, False, False)),
        ("Qwen3", {}, (False, False, False, True)),
        ("Qwen3", {"attention_bias": True}, (True, True, False, True)),
    ],
)
def test_biases_and_norms(
    tmp_path: Path, architecture: str, config: dict[str, Any], expected: tuple[bool, ...]
) -> None:
    spec = _spec(tmp_path, architecture, **config)
    assert (spec.qkv_bias, spec.o_bias, spec.mlp_bias, spec.qk_norm) == expected


def test_a_token_that_the_model_cannot_choose_ends_nothing(tmp_path: Path) -> None:
    assert _spec(tmp_path, "Llama", eos_token_id=[99, 100]).eos_token_ids == (99,)


@pytest.mark.parametrize(
    ("architecture", "config", "expected"),
    [
        ("Llama", {"sliding_window": 8}, (None,) * 4),
        ("Mistral", {"sliding_window": 8}, (8,) * 4),
        ("Mistral", {"sliding_window": None}, (None,) * 4),
        ("Qwen2", {"sliding_window": 8}, (None,) * 4),
        ("Qwen2", {"sliding_window": 8, "use_sliding_window": False}, (None,) * 4),
        (
            "Qwen2",
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 8),
        ),
        (
            "Qwen3",
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (None, 8, None, 8),
        ),
    ],
)
def test_sliding_windows(
    tmp_path: Path, architecture: str, config: dict[str, Any], expected: tuple[int | None, ...]
) -> None:
    assert _spec(tmp_path, architecture, **config).sliding_window == expected


def test_head_size_and_dtype(tmp_path: Path) -> None:
    assert _spec(tmp_path, "Mistral").head_size == 16
    spec = _spec(tmp_path, "Mistral", head_dim=32, torch_dtype="bfloat16")
    assert (spec.head_size, spec.dtype) == (32, "bfloat16")
    assert _spec(tmp_path, "Llama", num_key_value_heads=None).num_kv_heads == 4


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 512),
        ({"rope_type": "llama3", "factor": 8.0}, 512),
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
    ],
)
def test_stretched_embeddings_reach_further(
    tmp_path: Path, scaling: dict[str, Any] | None, expected: int
) -> None:
    assert _spec(tmp_path, "Llama", rope_scaling=scaling).longest_context == expected


def test_refusals_name_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="'gelu'"):
        _spec(tmp_path, "Llama", hidden_act="gelu")
    content = _BASE | {"architectures": ["LlamaForCausalLM"]}
    del content["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match="has no 'hidden_size'"):
        ModelSpec.from_directory(tmp_path)
