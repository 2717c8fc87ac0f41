"""Writes the benchmark's model as GGUF files of other precisions for llama.cpp, and keeps them.

Matrices are rounded from the values that our engine computes with; vectors stay float32, as in any
GGUF file.
"""

import os
from pathlib import Path
from typing import Any

from engine.checkpoint.builtin import BUILTIN_MODELS, require_builtin_file
from engine.checkpoint.cache import cache_root

PRECISIONS = ("f32", "bf16", "q8_0", "q4_1")


def source_file(model: str) -> Path:
    """Return the GGUF file that a model comes from.

    Raises:
        ValueError: if it does not come from one.
    """
    path = Path(model).expanduser()
    if model in BUILTIN_MODELS:
        return require_builtin_file(model)
    if path.suffix == ".gguf" and path.is_file():
        return path
    raise ValueError(f"{model} is not a GGUF file: llama.cpp cannot take part (--llama-bench none)")


def in_precision(source: Path, precision: str) -> Path:
    """Return a copy of a file with every matrix in a precision, or the file if most are already."""
    from gguf import GGMLQuantizationType, GGUFReader

    wanted = GGMLQuantizationType[precision.upper()]
    stat = source.stat()
    name = f"{source.stem}-{stat.st_size}-{stat.st_mtime_ns}-{precision}.gguf"
    target = cache_root() / "peers" / name
    if target.is_file():
        return target
    reader = GGUFReader(source)
    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
    if 2 * sum(tensor.tensor_type is wanted for tensor in matrices) > len(matrices):
        return source
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(f".{os.getpid()}")
    try:
        _write(reader, wanted, scratch)
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return target


def _write(reader: Any, wanted: Any, path: Path) -> None:
    import numpy as np
    from gguf import GGUFValueType, GGUFWriter
    from gguf.quants import dequantize, quantize

    writer = GGUFWriter(path, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        element = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=element)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, values)
        else:
            writer.add_tensor(tensor.name, quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
