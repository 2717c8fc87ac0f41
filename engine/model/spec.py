"""The shape of a model, read once from config.json. No torch, no weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.directory import architecture_of, eos_token_ids, read_json
from engine.errors import ModelLoadError

_ROPE_TYPES = ("default", "linear", "llama3", "factors")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Rotary embedding: base and how it is stretched (names as in config.json)."""

    rope_type: (
        str  # default, linear, llama3, or factors (one divisor per frequency, from GGUF files)
    )
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What the decoder is built from."""

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    norm_eps: float
    max_position_embeddings: int
    rope: RopeScaling
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: tuple[int | None, ...]  # per layer
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    dtype: str  # of the stored weights

    @classmethod
    def from_directory(cls, directory: Path) -> "ModelSpec":
        """Read config.json (and generation_config.json for end-of-sequence ids).

        Raises:
            ModelLoadError: for anything we do not compute, by name.
        """
        path = directory / "config.json"
        config = read_json(path)
        architecture = architecture_of(config, path)
        activation = config.get("hidden_act", "silu")
        if activation != "silu":
            raise ModelLoadError(f"{path}: hidden_act {activation!r}; only 'silu' is computed")
        num_heads = config["num_attention_heads"]
        has_attention_bias = bool(config.get("attention_bias", False))
        return cls(
            architecture=architecture,
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_size=config.get("head_dim") or config["hidden_size"] // num_heads,
            vocab_size=config["vocab_size"],
            norm_eps=config["rms_norm_eps"],
            max_position_embeddings=config["max_position_embeddings"],
            rope=_rope(config, path),
            qkv_bias=architecture == "Qwen2ForCausalLM" or has_attention_bias,
            o_bias=has_attention_bias and architecture != "Qwen2ForCausalLM",
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=architecture == "Qwen3ForCausalLM",
            sliding_window=_sliding_window(architecture, config),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            eos_token_ids=eos_token_ids(directory),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        )


def _rope(config: dict[str, Any], path: Path) -> RopeScaling:
    """transformers 5 writes `rope_parameters`; earlier versions `rope_theta` and `rope_scaling`."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = scaling.get("rope_type") or scaling.get("type") or "default"
    if rope_type not in _ROPE_TYPES:
        raise ModelLoadError(
            f"{path}: rope type {rope_type!r}; computed are {', '.join(_ROPE_TYPES)}"
        )
    theta = scaling.get("rope_theta") or config.get("rope_theta") or 10000.0
    keys = (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    )
    given = {key: scaling[key] for key in keys if scaling.get(key) is not None}
    factors = tuple(scaling.get("factors", ()))
    return RopeScaling(rope_type=rope_type, theta=float(theta), factors=factors, **given)


def _sliding_window(architecture: str, config: dict[str, Any]) -> tuple[int | None, ...]:
    """Window per layer; Qwen windows count only when switched on, and from `max_window_layers` up."""
    num_layers = config["num_hidden_layers"]
    window = config.get("sliding_window")
    if window is None or architecture == "LlamaForCausalLM":
        return (None,) * num_layers
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    if not config.get("use_sliding_window", False):
        return (None,) * num_layers
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", num_layers)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
