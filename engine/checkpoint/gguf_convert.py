"""A GGUF file -> a Hugging Face directory: config.json, model.safetensors, the tokenizer. Runs as a process of its own.

The tokenizer is read by transformers, which imports torch; the server process never does, so it calls
`convert_in_subprocess`. Weights are dequantized one by one into float32 and written in one pass: memory is bounded by
the largest tensor.
"""

import json
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from engine.checkpoint.cache import Progress
from engine.checkpoint.gguf_names import GgufFacts, config_json, hugging_face_name, is_permuted
from engine.errors import ModelLoadError

_LINE = "progress "


def convert_in_subprocess(file: Path, directory: Path, progress: Progress) -> None:
    """Convert `file` into the existing `directory`.

    Raises:
        ModelLoadError: if the file cannot be converted, with the converter's own words.
    """
    command = [sys.executable, "-m", "engine.checkpoint.gguf_convert", str(file), str(directory)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(_LINE):
            fraction, _, text = line[len(_LINE) :].strip().partition(" ")
            progress(text, float(fraction))
    _, errors = process.communicate()
    if process.returncode != 0:
        lines = errors.strip().splitlines() or ["no message"]
        raise ModelLoadError(f"{file} cannot be converted: {lines[-1]}")


def convert(file: Path, directory: Path, progress: Progress) -> None:
    """The conversion itself, in this process.

    Raises:
        UnsupportedArchitecture: for other model families.
        ModelLoadError: for tensors or metadata we do not understand.
    """
    import gguf

    reader = gguf.GGUFReader(str(file))
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    facts = GgufFacts(metadata=metadata, tensor_names=frozenset(tensors))
    rope_factors = tensors.get("rope_freqs.weight")
    config = config_json(facts, None if rope_factors is None else rope_factors.data)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    _write_weights(tensors, config, directory / "model.safetensors", progress)
    progress("converting the tokenizer", 0.8)
    _write_tokenizer(file, directory, metadata)
    progress("converting the tokenizer", 1.0)


def _write_weights(
    tensors: Mapping[str, Any], config: Mapping[str, Any], path: Path, progress: Progress
) -> None:
    named = {hugging_face_name(name): tensor for name, tensor in tensors.items()}
    wanted = {name: tensor for name, tensor in named.items() if name is not None}
    with path.open("wb") as output:
        _write_header(output, wanted)
        for done, (name, tensor) in enumerate(wanted.items(), start=1):
            output.write(_values(name, tensor, config).tobytes())
            progress("converting weights", 0.8 * done / len(wanted))


def _write_header(output: BinaryIO, tensors: Mapping[str, Any]) -> None:
    """safetensors: a length, a JSON table of names, types, shapes and offsets, then the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        shape = [int(n) for n in reversed(tensor.shape)]
        size = 4 * int(tensor.n_elements)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    output.write(struct.pack("<Q", len(text)) + text)


def _values(name: str, tensor: Any, config: Mapping[str, Any]) -> Any:
    """A tensor's values as float32 [out, in], llama.cpp's order of rotary pairs undone."""
    import numpy as np
    from gguf.quants import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ModelLoadError(
            f"{name} is stored as {tensor.tensor_type.name}, which cannot be dequantized"
        ) from error
    values = np.ascontiguousarray(values, dtype=np.float32)
    heads = is_permuted(name, config)
    if heads:
        pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
        values = np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))
    return values


def _write_tokenizer(file: Path, directory: Path, metadata: Mapping[str, Any]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    template = metadata.get("tokenizer.chat_template")
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(str(directory))


def main() -> int:
    """`python -m engine.checkpoint.gguf_convert FILE DIRECTORY`."""

    def progress(text: str, fraction: float) -> None:
        print(f"{_LINE}{fraction:.3f} {text}", flush=True)

    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]), progress)
    except (ModelLoadError, OSError, ValueError, KeyError) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
