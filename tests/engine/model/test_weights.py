"""No tensor may be missing or left over; the fingerprint depends on values, not on files."""

import json
import time
from pathlib import Path

import pytest
import torch
from default_model import default_model_directory
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_llama
from torch import Tensor

from engine.errors import ModelLoadError
from engine.model.spec import ModelSpec
from engine.model.weights import WeightReader

pytestmark = pytest.mark.torch


def _reader(directory: Path) -> WeightReader:
    return WeightReader(directory, ModelSpec.from_directory(directory))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny")


def _rewrite(directory: Path, change: dict[str, Tensor | None]) -> None:
    tensors = load_file(directory / "model.safetensors") | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, str(directory / "model.safetensors"))


def _shard(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    shards = {
        name: f"model-{index % 2 + 1:05}-of-00002.safetensors" for index, name in enumerate(tensors)
    }
    for shard in set(shards.values()):
        part = {name: tensor for name, tensor in tensors.items() if shards[name] == shard}
        save_file(part, str(directory / shard))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def test_take_hands_out_what_is_stored(directory: Path) -> None:
    reader = _reader(directory)
    for name, tensor in load_file(directory / "model.safetensors").items():
        assert torch.equal(reader.take(name), tensor)
    reader.finish()


def test_missing_left_over_and_misshapen(directory: Path) -> None:
    name = "model.layers.3.mlp.up_proj.weight"
    _rewrite(directory, {name: None})
    with pytest.raises(ModelLoadError, match=f"missing: {name}"):
        _reader(directory)
    _rewrite(directory, {name: torch.zeros(3, 3)})
    with pytest.raises(ModelLoadError, match=rf"{name} has shape \[3, 3\]"):
        _reader(directory).take(name)
    _rewrite(directory, {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})
    with pytest.raises(ModelLoadError, match=r"unexpected weights: .*q_proj\.bias"):
        _reader(directory)


def test_harmless_extras_are_tolerated(directory: Path) -> None:
    embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    before = _reader(directory).fingerprint()
    buffer = torch.zeros(8)
    _rewrite(
        directory,
        {
            "lm_head.weight": embedding.clone(),
            "model.layers.0.self_attn.rotary_emb.inv_freq": buffer,
        },
    )
    assert _reader(directory).fingerprint() == before


def test_integers_are_no_weights(directory: Path) -> None:
    _rewrite(directory, {"model.norm.weight": torch.ones(48, dtype=torch.int8)})
    with pytest.raises(ModelLoadError, match="int8"):
        _reader(directory).take("model.norm.weight")


def test_damaged_and_absent_files_are_named(directory: Path) -> None:
    _shard(directory)
    (directory / "model-00002-of-00002.safetensors").write_bytes(b"\0" * 10)
    with pytest.raises(ModelLoadError, match=r"model-00002-of-00002\.safetensors cannot be read"):
        _reader(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="files are missing: model-00002"):
        _reader(directory)


def test_fingerprint_sees_values_not_files(directory: Path) -> None:
    before = _reader(directory).fingerprint()
    _shard(directory)
    assert _reader(directory).fingerprint() == before
    other = write_tiny_llama(directory.parent / "other", seed=1)
    assert _reader(other).fingerprint() != before


@pytest.mark.model
def test_fingerprint_of_the_default_model_is_cheap() -> None:
    reader = _reader(default_model_directory())
    reader.fingerprint()
    start = time.process_time()
    reader.fingerprint()
    assert time.process_time() - start < 2  # 0.3 s on an idle machine
