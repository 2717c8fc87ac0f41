"""A GGUF file -> a directory in the Hugging Face layout, dequantized once.

A child process rebuilds the tokenizer at the same time (see `gguf_tokenizer.py`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderField, ReaderTensor

from engine.checkpoint.cache import Progress
from engine.checkpoint.directory import BLOCKS_FILE
from engine.checkpoint.gguf_blocks import block_sources
from engine.checkpoint.gguf_config import generation_config, model_config
from engine.checkpoint.gguf_tensors import dtype_of, tensor_source
from engine.checkpoint.gguf_tokenizer import TokenizerConversion
from engine.checkpoint.safetensors_writer import write_safetensors
from engine.errors import ModelLoadError

_ROPE_FACTORS = "rope_freqs.weight"
# What reading raises where numbers, names and shapes in a file contradict each other.
_SIGNS_OF_DAMAGE = (ValueError, IndexError, KeyError, TypeError, ArithmeticError)
_CONFIG_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def convert_gguf(file: Path, directory: Path, progress: Progress) -> None:
    """Write config, weights and tokenizer of a GGUF file into an empty directory.

    Raises:
        ModelLoadError: The file is damaged, one part of several, or a model we do not serve.
    """
    progress("reading the GGUF file", 0.0)
    tokenizer = TokenizerConversion(file, directory)
    try:
        _convert_model(file, directory, progress)
        progress("converting the tokenizer", 1.0)
        tokenizer.finish()
    except _SIGNS_OF_DAMAGE as error:
        raise ModelLoadError(f"{file} is damaged: {error}") from error
    finally:
        tokenizer.stop()


def _convert_model(file: Path, directory: Path, progress: Progress) -> None:
    """Write config and weights."""
    try:
        reader = GGUFReader(file)
    except (*_SIGNS_OF_DAMAGE, OSError) as error:
        raise ModelLoadError(f"{file} is not a readable GGUF file: {error}") from error
    metadata = {name: _value(field) for name, field in reader.fields.items() if _is_small(field)}
    if metadata.get("split.count", 0) > 1:
        raise ModelLoadError(f"{file} is one part of several: merge them first (llama-gguf-split).")
    tensors = [tensor for tensor in reader.tensors if tensor.name != _ROPE_FACTORS]
    config = model_config(metadata, _shapes(tensors), _rope_factors(reader))
    config["dtype"] = _CONFIG_DTYPES[_weights_dtype(tensors)]
    sources = [tensor_source(tensor, config) for tensor in tensors]
    for fraction in write_safetensors(directory / "model.safetensors", sources):
        progress("converting weights", fraction)
    blocks = [source for tensor in tensors for source in block_sources(tensor, config)]
    if blocks:
        for _ in write_safetensors(directory / BLOCKS_FILE, blocks):
            pass
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", generation_config(metadata))


def _is_small(field: ReaderField) -> bool:
    """Whether to read a field here: not the vocabulary's arrays, which take long to read."""
    return len(field.data) <= 1024 and not field.name.startswith("GGUF.")


def _value(field: ReaderField) -> Any:
    value = field.contents()
    # Shortest decimal of the float32 in the file: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _shapes(tensors: list[ReaderTensor]) -> dict[str, tuple[int, ...]]:
    shapes = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in tensors}
    if "token_embd.weight" not in shapes:
        raise ModelLoadError("The GGUF file has no token_embd.weight.")
    return shapes


def _rope_factors(reader: GGUFReader) -> list[float] | None:
    for tensor in reader.tensors:
        if tensor.name == _ROPE_FACTORS:
            return [float(factor) for factor in tensor.data.reshape(-1)]
    return None


def _weights_dtype(tensors: list[ReaderTensor]) -> str:
    """Return the matrices' common dtype, else float32 (norms are float32 in any file)."""
    dtypes = {dtype_of(tensor) for tensor in tensors if len(tensor.shape) > 1}
    return dtypes.pop() if len(dtypes) == 1 else "F32"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
