"""A GGUF file's metadata -> config.json and generation_config.json."""

import math
from collections.abc import Mapping
from typing import Any

from engine.errors import ModelLoadError, UnsupportedArchitecture

Metadata = Mapping[str, Any]

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def model_config(
    metadata: Metadata, shapes: Mapping[str, tuple[int, ...]], rope_factors: list[float] | None
) -> dict[str, Any]:
    """Return the config.json that transformers would need for the same model, less the dtype.

    Args:
        metadata: The file's fields by name.
        shapes: Row-major shape of every tensor by its GGUF name.
        rope_factors: rope_freqs.weight [D/2]: divisors of the rotary frequencies (Llama 3).

    Raises:
        UnsupportedArchitecture: We do not serve the family, or it is a mixture of experts.
        ModelLoadError: We do not serve this variant of a served family.
    """
    family = metadata.get("general.architecture")
    if family not in _ARCHITECTURES or metadata.get(f"{family}.expert_count"):
        experts = " with experts" if family in _ARCHITECTURES else ""
        raise UnsupportedArchitecture(
            f"The GGUF file holds {family!r}{experts}; supported: {', '.join(_ARCHITECTURES)}."
        )
    read = _Section(metadata, family)
    num_heads = read.number("attention.head_count")
    head_size = int(
        read.optional("attention.key_length", read.number("embedding_length") // num_heads)
    )
    _refuse_variants(read, head_size)
    config = {
        "vocab_size": shapes["token_embd.weight"][0],
        "hidden_size": read.number("embedding_length"),
        "intermediate_size": read.number("feed_forward_length"),
        "num_hidden_layers": read.number("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": read.number("attention.head_count_kv", num_heads),
        "head_dim": head_size,
        "hidden_act": "silu",
        "max_position_embeddings": read.number("context_length"),
        "rms_norm_eps": read.optional("attention.layer_norm_rms_epsilon", 1e-6),
        "rope_parameters": _rope_parameters(read, rope_factors),
        "tie_word_embeddings": "output.weight" not in shapes,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }
    return config | _family_config(family, read, shapes)


def generation_config(metadata: Metadata) -> dict[str, Any]:
    """Return the generation_config.json, with all ids that end a turn or a text."""
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = [metadata.get(f"tokenizer.ggml.{key}") for key in keys]
    return {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(dict.fromkeys(token_id for token_id in ids if token_id is not None)),
    }


class _Section:
    """The metadata under `<family>.`."""

    def __init__(self, metadata: Metadata, family: str) -> None:
        self._metadata = metadata
        self._family = family

    def optional(self, key: str, default: Any) -> Any:
        return self._metadata.get(f"{self._family}.{key}", default)

    def number(self, key: str, default: int | None = None) -> int:
        """Return an integer that is the same in all layers (some files state it per layer)."""
        value = self.optional(key, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int):
            raise ModelLoadError(f"The GGUF file has no single {self._family}.{key}: {value}.")
        return value


def _refuse_variants(read: _Section, head_size: int) -> None:
    if read.optional("attention.value_length", head_size) != head_size:
        raise ModelLoadError("Value heads of another size than key heads are not supported.")
    if read.optional("rope.dimension_count", head_size) != head_size:
        raise ModelLoadError("Rotary embedding of only a part of the head is not supported.")


def _family_config(
    family: str, read: _Section, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Return what differs between the families. GGUF files of Mistral models say llama."""
    window = read.optional("attention.sliding_window", None)
    if family == "llama" and window:
        family = "mistral"
    names = {"architectures": [_ARCHITECTURES[family]], "model_type": family}
    if family == "llama":
        biases = {
            "attention_bias": "blk.0.attn_q.bias" in shapes,
            "mlp_bias": "blk.0.ffn_up.bias" in shapes,
        }
        return names | biases
    if family == "mistral":
        return names | {"sliding_window": window}
    sliding = {"use_sliding_window": bool(window), "sliding_window": window, "max_window_layers": 0}
    return names | sliding | ({"attention_bias": False} if family == "qwen3" else {})


def _rope_parameters(read: _Section, factors: list[float] | None) -> dict[str, Any]:
    base: dict[str, Any] = {"rope_theta": read.optional("rope.freq_base", 10000.0)}
    context = read.number("context_length")
    kind = read.optional("rope.scaling.type", "linear")  # as llama.cpp takes it
    factor = read.optional("rope.scaling.factor", read.optional("rope.scale_linear", 1.0))
    attn_factor = read.optional("rope.scaling.attn_factor", 1.0)
    if factors is not None:
        # longrope with one list for all lengths expresses any divisors, in transformers, too.
        return base | {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "factor": 1.0,
            "attention_factor": attn_factor,
            "original_max_position_embeddings": context,
        }
    if kind == "yarn":
        return base | _yarn_parameters(read, factor, attn_factor)
    if attn_factor != 1.0:
        raise ModelLoadError(f"rope.scaling.attn_factor of GGUF files needs yarn, not {kind!r}.")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return base | {"rope_type": "default"}
    if kind == "linear":
        return base | {"rope_type": "linear", "factor": factor}
    raise ModelLoadError(f"Rotary scaling {kind!r} of GGUF files is not supported.")


def _yarn_parameters(read: _Section, factor: float, attn_factor: float) -> dict[str, Any]:
    # llama.cpp and the files' writers do not agree on what these do to our families.
    for key, unset in (("attn_factor", None), ("ext_factor", 1.0), ("log_multiplier", 0.0)):
        name = f"rope.scaling.yarn_{key}"
        if read.optional(name, unset) != unset:
            raise ModelLoadError(f"{name} of GGUF files is not supported.")
    context = read.number("context_length")
    parameters = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": read.number(
            "rope.scaling.original_context_length", context
        ),
        "beta_fast": read.optional("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": read.optional("rope.scaling.yarn_beta_slow", 1.0),
    }
    if attn_factor != 1.0:  # in llama.cpp it multiplies what YaRN derives from the factor
        derived = 1.0 + 0.1 * math.log(max(factor, 1.0))
        parameters["attention_factor"] = attn_factor * derived
    return parameters
