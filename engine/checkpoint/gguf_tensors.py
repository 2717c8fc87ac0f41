"""Tensors of a GGUF file under their Hugging Face names, dequantized, in chunks of rows.

llama.cpp reorders the rows of Q and K in llama-architecture files for its interleaved rotary
embedding; we undo that.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, ReaderTensor
from gguf.quants import dequantize

from engine.checkpoint.safetensors_writer import TensorSource
from engine.errors import ModelLoadError

_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_KEPT_DTYPES = {GGMLQuantizationType.F16: "F16", GGMLQuantizationType.BF16: "BF16"}
_CHUNK_ELEMENTS = 1 << 23


def hugging_face_name(name: str) -> str:
    """Return a tensor's name: blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight.

    Raises:
        ModelLoadError: Our architectures have no such tensor.
    """
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if layer and layer[2] in _LAYER_NAMES:
        return f"model.layers.{layer[1]}.{_LAYER_NAMES[layer[2]]}.{layer[3]}"
    stem, _, kind = name.rpartition(".")
    if stem in _TOP_NAMES and kind == "weight":
        return f"{_TOP_NAMES[stem]}.weight"
    raise ModelLoadError(f"The GGUF file has a tensor {name!r}, which no served architecture has.")


def dtype_of(tensor: ReaderTensor) -> str:
    """Return the safetensors dtype to write a tensor in: its own half precision, else float32."""
    return _KEPT_DTYPES.get(tensor.tensor_type, "F32")


def tensor_source(tensor: ReaderTensor, config: dict[str, Any]) -> TensorSource:
    """Return the tensor as it goes into the converted file."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    return TensorSource(
        name=hugging_face_name(tensor.name),
        dtype=dtype_of(tensor),
        shape=shape,
        pieces=_pieces(tensor, shape, row_order(tensor.name, shape[0], config)),
    )


def row_order(name: str, num_rows: int, config: dict[str, Any]) -> np.ndarray | None:
    """Return which stored row becomes each row of the result; None: as stored.

    Args:
        name: The tensor's name in the file.
        num_rows: Number of its rows.
        config: The model's config.json.
    """
    part = name.rpartition(".")[0].rpartition(".")[2]
    if config["model_type"] not in ("llama", "mistral") or part not in ("attn_q", "attn_k"):
        return None
    heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
    stored = np.arange(num_rows).reshape(heads, num_rows // heads // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)


def _pieces(
    tensor: ReaderTensor, shape: tuple[int, ...], order: np.ndarray | None
) -> Iterator[memoryview]:
    num_rows = shape[0]
    rows_per_piece = max(1, _CHUNK_ELEMENTS * num_rows // max(1, int(tensor.n_elements)))
    for start in range(0, num_rows, rows_per_piece):
        stop = min(start + rows_per_piece, num_rows)
        rows = tensor.data[start:stop] if order is None else tensor.data[order[start:stop]]
        if tensor.tensor_type not in _KEPT_DTYPES:
            rows = _float32(tensor, rows)
        yield np.ascontiguousarray(rows).data.cast("B")


def _float32(tensor: ReaderTensor, rows: np.ndarray) -> np.ndarray:
    try:
        dequantized: np.ndarray = dequantize(rows, tensor.tensor_type)
        return dequantized.astype(np.float32, copy=False)
    except NotImplementedError as error:
        raise ModelLoadError(
            f"{tensor.name} is stored as {tensor.tensor_type.name}, which cannot be dequantized."
        ) from error
