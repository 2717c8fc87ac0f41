"""GGUF's names and metadata in Hugging Face's terms. Pure: no file is opened here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import UnsupportedArchitecture

_ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral": ("MistralForCausalLM", "mistral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}

_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFacts:
    """What a file says of itself."""

    metadata: Mapping[str, Any]
    tensor_names: frozenset[str]


def hugging_face_name(name: str) -> str | None:
    """The tensor's name in a Hugging Face checkpoint; None for tensors that become configuration."""
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
    return None


def is_permuted(name: str, config: Mapping[str, Any]) -> int:
    """Heads whose rotary pairs llama.cpp interleaved in this tensor (its llama files only); 0 if none."""
    if config["model_type"] not in ("llama", "mistral"):
        return 0
    if ".self_attn.q_proj." in name:
        return int(config["num_attention_heads"])
    if ".self_attn.k_proj." in name:
        return int(config["num_key_value_heads"])
    return 0


def config_json(facts: GgufFacts, rope_factors: Any) -> dict[str, Any]:
    """A config.json for the file.

    Args:
        rope_factors: [D/2] divisors of the rotary frequencies (llama.cpp's form of Llama-3 scaling), or None.

    Raises:
        UnsupportedArchitecture: for other model families.
    """
    metadata = facts.metadata
    kind = str(metadata.get("general.architecture"))
    if kind not in _ARCHITECTURES:
        raise UnsupportedArchitecture(
            f"the file holds a {kind!r} model; served are {', '.join(_ARCHITECTURES)}"
        )

    def value(key: str, default: Any = None) -> Any:
        return metadata.get(f"{kind}.{key}", default)

    window = value("attention.sliding_window")
    if kind == "llama" and window:
        kind_out = "mistral"  # llama.cpp writes Mistral models as llama
    else:
        kind_out = kind
    architecture, model_type = _ARCHITECTURES[kind_out]
    heads = int(value("attention.head_count"))
    size = int(value("embedding_length"))
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": size,
        "intermediate_size": int(value("feed_forward_length")),
        "num_hidden_layers": int(value("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(value("attention.head_count_kv", heads)),
        "head_dim": int(value("attention.key_length", size // heads)),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "max_position_embeddings": int(value("context_length")),
        "rms_norm_eps": float(value("attention.layer_norm_rms_epsilon")),
        "rope_parameters": _rope(facts, kind, rope_factors),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in facts.tensor_names and kind != "qwen2",
        "tie_word_embeddings": "output.weight" not in facts.tensor_names,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
    }
    if window:
        config["sliding_window"] = int(window)
    return config


def _rope(facts: GgufFacts, kind: str, factors: Any) -> dict[str, Any]:
    metadata = facts.metadata
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(metadata.get(f"{kind}.rope.freq_base", 10000.0)),
    }
    scaling = metadata.get(f"{kind}.rope.scaling.type")
    if factors is not None:
        rope |= {"rope_type": "factors", "factors": [float(f) for f in factors]}
    elif scaling == "linear":
        factor = float(metadata[f"{kind}.rope.scaling.factor"])
        rope |= {"rope_type": "linear", "factor": factor}
    elif scaling not in (None, "none"):
        raise UnsupportedArchitecture(f"rope scaling {scaling!r}; computed are linear and factors")
    return rope
