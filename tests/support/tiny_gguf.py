"""Writes tiny GGUF files as llama.cpp's converter would, and returns their weights."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, LAYERS, FEED_FORWARD = 64, 4, 2, 16, 2, 96
# Byte-level pieces: the alphabet, one merge, and two control tokens.
TOKENS = [*(chr(code) for code in range(0x21, 0x7F)), "\u0120", "he", "<|start|>", "<|end|>"]
_CONTROL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyGguf:
    """The contents of a file."""

    family: str = "llama"
    quantization: GGMLQuantizationType = GGMLQuantizationType.F32
    is_tied: bool = True
    rope_factors: tuple[float, ...] | None = None  # [D/2]
    metadata: tuple[tuple[str, int | float | str], ...] = ()  # further keys under `<family>.`
    pre_tokenizer: str = "smollm"
    more_tokens: tuple[tuple[str, int], ...] = ()  # with their types; the first one begins texts

    @property
    def tokens(self) -> list[str]:
        """All tokens, by id."""
        return [*TOKENS, *(token for token, _ in self.more_tokens)]


def write_tiny_gguf(file: Path, tiny: TinyGguf) -> dict[str, np.ndarray]:
    """Write a file; return its weights under Hugging Face names, as quantization leaves them."""
    writer = GGUFWriter(str(file), tiny.family)
    _write_metadata(writer, tiny)
    _write_tokenizer(writer, tiny)
    weights = {}
    for gguf_name, name, weight in _tensors(tiny):
        is_matrix = weight.ndim == 2
        kind = tiny.quantization if is_matrix else GGMLQuantizationType.F32
        stored = _interleaved(gguf_name, weight) if tiny.family == "llama" else weight
        if kind == GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name, stored)
            weights[name] = weight
            continue
        packed = quantize(stored, kind)
        writer.add_tensor(gguf_name, packed, raw_dtype=kind)
        # Blocks lie within rows, so quantizing commutes with reordering them.
        weights[name] = dequantize(quantize(weight, kind), kind)
    if tiny.rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", np.array(tiny.rope_factors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _write_metadata(writer: GGUFWriter, tiny: TinyGguf) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_key_length(HEAD_SIZE)
    for key, value in tiny.metadata:
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{tiny.family}.{key}", value)


def _write_tokenizer(writer: GGUFWriter, tiny: TinyGguf) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(tiny.pre_tokenizer)
    writer.add_token_list(tiny.tokens)
    more_types = [kind for _, kind in tiny.more_tokens]
    writer.add_token_types([1] * (len(TOKENS) - 2) + [_CONTROL] * 2 + more_types)
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(len(TOKENS) if tiny.more_tokens else len(TOKENS) - 2)
    writer.add_eos_token_id(len(TOKENS) - 1)
    writer.add_add_bos_token(bool(tiny.more_tokens))
    writer.add_chat_template(
        "{% for m in messages %}<|start|>{{ m['role'] }} {{ m['content'] }}<|end|>{% endfor %}"
    )


def _tensors(tiny: TinyGguf) -> list[tuple[str, str, np.ndarray]]:
    """Return (GGUF name, Hugging Face name, float32 values) of every tensor."""
    rng = np.random.default_rng(0)
    shapes: dict[tuple[str, str], tuple[int, ...]] = {
        ("token_embd", "model.embed_tokens"): (len(tiny.tokens), HIDDEN),
        ("output_norm", "model.norm"): (HIDDEN,),
    }
    if not tiny.is_tied:
        shapes["output", "lm_head"] = (len(tiny.tokens), HIDDEN)
    for layer in range(LAYERS):
        for (short, long), shape in _layer_shapes(tiny.family).items():
            shapes[f"blk.{layer}.{short}", f"model.layers.{layer}.{long}"] = shape
    tensors = []
    for (short, long), shape in shapes.items():
        kinds = ["weight"]
        if tiny.family == "qwen2" and long.endswith(("q_proj", "k_proj", "v_proj")):
            kinds.append("bias")
        for kind in kinds:
            values = rng.standard_normal(shape[:1] if kind == "bias" else shape) * 0.2
            tensors.append((f"{short}.{kind}", f"{long}.{kind}", values.astype(np.float32)))
    return tensors


def _layer_shapes(family: str) -> dict[tuple[str, str], tuple[int, ...]]:
    query, key = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
    shapes: dict[tuple[str, str], tuple[int, ...]] = {
        ("attn_norm", "input_layernorm"): (HIDDEN,),
        ("attn_q", "self_attn.q_proj"): (query, HIDDEN),
        ("attn_k", "self_attn.k_proj"): (key, HIDDEN),
        ("attn_v", "self_attn.v_proj"): (key, HIDDEN),
        ("attn_output", "self_attn.o_proj"): (HIDDEN, query),
        ("ffn_norm", "post_attention_layernorm"): (HIDDEN,),
        ("ffn_gate", "mlp.gate_proj"): (FEED_FORWARD, HIDDEN),
        ("ffn_up", "mlp.up_proj"): (FEED_FORWARD, HIDDEN),
        ("ffn_down", "mlp.down_proj"): (HIDDEN, FEED_FORWARD),
    }
    if family == "qwen3":
        shapes["attn_q_norm", "self_attn.q_norm"] = (HEAD_SIZE,)
        shapes["attn_k_norm", "self_attn.k_norm"] = (HEAD_SIZE,)
    return shapes


def _interleaved(name: str, weight: np.ndarray) -> np.ndarray:
    """Reorder rows as llama.cpp's converter does for Q and K of llama models."""
    part = name.split(".")[-2]
    if part not in ("attn_q", "attn_k"):
        return weight
    heads = HEADS if part == "attn_q" else KV_HEADS
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
