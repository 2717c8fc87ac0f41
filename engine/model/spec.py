"""The shape of a model, read once from config.json. No torch, no weights."""

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.checkpoint.directory import architecture_of, eos_token_ids, read_json
from engine.errors import ModelLoadError

_ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """The base of the rotary embedding and how it is stretched; most names are config.json's."""

    rope_type: str  # default, linear, llama3, yarn or longrope
    theta: float
    factor: float = 1.0
    original_max_position_embeddings: int = 8192
    attention_factor: float = 1.0  # multiplies cos and sin
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    frequency_factors: tuple[float, ...] = ()  # longrope: a divisor per frequency, [D/2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The shape of a model, which its decoder is built from."""

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

    @property
    def longest_context(self) -> int:
        """The most tokens that the rotary embedding is made for.

        Where it is stretched by a factor, `max_position_embeddings` may be the length before.
        """
        length, rope = self.max_position_embeddings, self.rope
        if rope.rope_type == "linear":
            return int(length * rope.factor)
        if rope.rope_type == "yarn":
            return max(length, int(rope.original_max_position_embeddings * rope.factor))
        return length

    @classmethod
    def from_directory(cls, directory: Path) -> "ModelSpec":
        """Read config.json (and generation_config.json for end-of-sequence ids).

        Raises:
            ModelLoadError: if a key is missing, or the model needs something that we do not
                compute; the message names it.
        """
        path = directory / "config.json"
        config = read_json(path)
        try:
            return cls._from_config(config, directory)
        except KeyError as error:
            raise ModelLoadError(f"{path} has no {error.args[0]!r}.") from error

    @classmethod
    def _from_config(cls, config: dict[str, Any], directory: Path) -> "ModelSpec":
        path = directory / "config.json"
        architecture = architecture_of(config, path)
        activation = config.get("hidden_act", "silu")
        if activation != "silu":
            raise ModelLoadError(f"{path}: hidden_act {activation!r}; only 'silu' is supported.")
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
            # A tokenizer may have tokens for which the model was never given rows.
            eos_token_ids=tuple(i for i in eos_token_ids(directory) if i < config["vocab_size"]),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        )


def _rope(config: dict[str, Any], path: Path) -> RopeScaling:
    """Read the rotary parameters.

    transformers 5 writes `rope_parameters`; earlier versions write `rope_theta` and `rope_scaling`.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = scaling.get("rope_type") or scaling.get("type") or "default"
    if rope_type not in _ROPE_TYPES:
        raise ModelLoadError(
            f"{path}: rope type {rope_type!r}; supported: {', '.join(_ROPE_TYPES)}."
        )
    if scaling.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelLoadError(f"{path}: partial_rotary_factor is not supported.")
    given = {
        field.name: scaling[field.name]
        for field in fields(RopeScaling)
        if scaling.get(field.name) is not None
    }
    if rope_type in ("yarn", "longrope"):
        context = config["max_position_embeddings"]
        given.setdefault("original_max_position_embeddings", context)
        given.setdefault("factor", context / given["original_max_position_embeddings"])
    if rope_type == "yarn":
        given.setdefault("attention_factor", _yarn_attention_factor(scaling, given["factor"]))
    if rope_type == "longrope":
        given |= _longrope(scaling, given, path)
    theta = scaling.get("rope_theta") or config.get("rope_theta") or 10000.0
    return RopeScaling(**given | {"rope_type": rope_type, "theta": float(theta)})


def _yarn_attention_factor(scaling: dict[str, Any], factor: float) -> float:
    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    mscale, mscale_all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return magnitude(mscale) / magnitude(mscale_all_dim)
    return magnitude(1.0)


def _longrope(scaling: dict[str, Any], given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Read one list of divisors for all lengths, the form that Llama-3 GGUF files convert to."""
    if scaling["short_factor"] != scaling["long_factor"]:
        # Two lists would make a token's result depend on how long the sequence is.
        raise ModelLoadError(f"{path}: longrope with different short and long factors.")
    if given["factor"] != 1.0 and "attention_factor" not in given:
        raise ModelLoadError(f"{path}: longrope without an attention_factor.")
    return {"frequency_factors": tuple(scaling["long_factor"])}


def _sliding_window(architecture: str, config: dict[str, Any]) -> tuple[int | None, ...]:
    """Return each layer's window; Qwen's apply only if enabled, from `max_window_layers` up."""
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
