"""The tensors of a checkpoint directory, read lazily; none may be missing and none left over.

A converted GGUF file has its quantized matrices twice: expanded, as any reader of Hugging Face's
layout expects them, and as the original blocks in `blocks.safetensors`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.checkpoint.directory import BLOCKS_FILE, has_blocks, read_json
from engine.errors import ModelLoadError
from engine.model.block_weight import BlockWeight
from engine.model.file_pages import let_go
from engine.model.spec import ModelSpec

_FINGERPRINT_ELEMENTS = 1024
_MOST_READ_BYTES = 32 << 20  # read before pages are released; most of them are packed by then
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


class WeightReader:
    """A reader that hands out each tensor of a checkpoint once."""

    def __init__(self, directory: Path, spec: ModelSpec, *, keep_blocks: bool = False) -> None:
        """Open the files and compare the tensors' names with those the architecture needs.

        Args:
            keep_blocks: Hand out matrices as quantized blocks where the checkpoint has them.

        Raises:
            ModelLoadError: if tensors are missing or left over, or a file cannot be read.
        """
        self._directory = directory
        # Files are opened once: a header lists every tensor, and reading it again for each of them
        # takes half a second for a small model. Tensors outlive the handles.
        self._files: dict[str, Any] = {}
        self._paths = _weight_files(directory)
        self._read_bytes = 0  # since pages were last released
        for path in self._paths:
            file = _open(path)
            self._files |= dict.fromkeys(file.keys(), file)
        self._blocks: dict[str, Any] = {}
        if keep_blocks and has_blocks(directory):
            self._paths.append(directory / BLOCKS_FILE)
            file = _open(directory / BLOCKS_FILE)
            self._blocks = dict.fromkeys(file.keys(), file)
        self._shapes = dict(expected_shapes(spec))
        self._left = set(self._shapes)
        missing = sorted(set(self._shapes) - set(self._files))
        if missing:
            raise ModelLoadError(f"{directory}: weights are missing: {_listed(missing)}")
        surplus = sorted(
            name
            for name in set(self._files) - set(self._shapes)
            if not name.endswith(_IGNORED_SUFFIXES)
            and not (spec.tie_word_embeddings and name == "lm_head.weight")
        )
        if surplus:
            raise ModelLoadError(f"{directory}: unexpected weights: {_listed(surplus)}")

    def take(self, name: str) -> Tensor:
        """Return the tensor as stored, memory-mapped.

        Raises:
            ModelLoadError: if its shape is not the expected one, or its type is not a float's.
        """
        tensor = self._read(name)
        self._left.discard(name)
        return tensor

    def take_matrix(self, name: str) -> Tensor | BlockWeight:
        """Return a matrix as blocks if they are kept and it has any, else as `take` does."""
        if f"{name}.codes" not in self._blocks:
            return self.take(name)
        self._left.discard(name)
        minimums = f"{name}.minimums"
        weight = BlockWeight(
            codes=self._get(self._blocks, f"{name}.codes"),
            scales=self._get(self._blocks, f"{name}.scales"),
            minimums=self._get(self._blocks, minimums) if minimums in self._blocks else None,
        )
        assert list(weight.shape) == self._shapes[name], "the conversion checked the shapes"
        return weight

    def finish(self) -> None:
        """Check that every tensor was taken."""
        assert not self._left, f"weights never taken: {_listed(sorted(self._left))}"

    def fingerprint(self) -> str:
        """Return a sha256 over the name, shape and 1,024 evenly spaced elements of every tensor.

        It identifies the weights that exit heads were trained for. Elements are taken as float32,
        so it does not depend on file layout and is cheap.
        """
        digest = hashlib.sha256()
        for name in sorted(self._shapes):
            flat = self._read(name).flatten()
            count = min(_FINGERPRINT_ELEMENTS, len(flat))
            picked = flat[torch.linspace(0, len(flat) - 1, count, dtype=torch.float64).long()]
            digest.update(json.dumps([name, self._shapes[name]]).encode())
            digest.update(picked.float().numpy().tobytes())
        return digest.hexdigest()

    def _read(self, name: str) -> Tensor:
        tensor = self._get(self._files, name)
        if list(tensor.shape) != self._shapes[name]:
            raise ModelLoadError(
                f"{self._directory}: {name} has shape {list(tensor.shape)}, config.json says "
                f"{self._shapes[name]}"
            )
        if tensor.dtype not in _DTYPES:
            raise ModelLoadError(
                f"{self._directory}: {name} is {tensor.dtype}: "
                "only float32, float16 and bfloat16 weights are supported"
            )
        return tensor

    def _get(self, files: Mapping[str, Any], name: str) -> Tensor:
        try:
            tensor: Tensor = files[name].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"{self._directory}: {name} cannot be read: {error}") from error
        if self._read_bytes > _MOST_READ_BYTES:
            let_go(self._paths)
            self._read_bytes = 0
        self._read_bytes += tensor.nbytes
        return tensor


def _weight_files(directory: Path) -> list[Path]:
    """Return the index's shards, else model.safetensors, else every safetensors file."""
    shards = read_json(directory / "model.safetensors.index.json").get("weight_map", {})
    if shards:
        paths = [directory / name for name in sorted(set(shards.values()))]
    elif (directory / "model.safetensors").is_file():
        paths = [directory / "model.safetensors"]
    else:
        paths = sorted(directory.glob("*.safetensors"))
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise ModelLoadError(f"{directory}: files are missing: {_listed(absent)}")
    return paths


def _open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error


def expected_shapes(spec: ModelSpec) -> Iterator[tuple[str, list[int]]]:
    """Yield the name (Hugging Face's) and shape of every tensor of the architecture."""
    size, wide = spec.hidden_size, spec.intermediate_size
    query, key = spec.num_heads * spec.head_size, spec.num_kv_heads * spec.head_size
    yield "model.embed_tokens.weight", [spec.vocab_size, size]
    yield "model.norm.weight", [size]
    if not spec.tie_word_embeddings:
        yield "lm_head.weight", [spec.vocab_size, size]
    linears = {
        "self_attn.q_proj": (query, size, spec.qkv_bias),
        "self_attn.k_proj": (key, size, spec.qkv_bias),
        "self_attn.v_proj": (key, size, spec.qkv_bias),
        "self_attn.o_proj": (size, query, spec.o_bias),
        "mlp.gate_proj": (wide, size, spec.mlp_bias),
        "mlp.up_proj": (wide, size, spec.mlp_bias),
        "mlp.down_proj": (size, wide, spec.mlp_bias),
    }
    norms = {"input_layernorm": size, "post_attention_layernorm": size}
    if spec.qk_norm:
        norms |= {"self_attn.q_norm": spec.head_size, "self_attn.k_norm": spec.head_size}
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns, has_bias) in linears.items():
            yield f"{prefix}{name}.weight", [rows, columns]
            if has_bias:
                yield f"{prefix}{name}.bias", [rows]
        for name, length in norms.items():
            yield f"{prefix}{name}.weight", [length]


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
