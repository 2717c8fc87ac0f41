"""A model that is taken apart and put together again has the same weights and heads."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.gpu.parcel import is_parcel, pack, unpack
from engine.model.block_weight import quantize

pytestmark = pytest.mark.torch


def test_there_and_back(tmp_path: Path) -> None:
    directory, heads = tmp_path / "model", tmp_path / "heads"
    directory.mkdir()
    heads.mkdir()
    stored, weights = {}, {"model.norm.weight": torch.randn(64)}
    for name, bits in (("a", 4), ("b", 8)):
        block = quantize(torch.randn(8, 64), bits)  # type: ignore[arg-type]
        stored |= {f"{name}.codes": block.codes, f"{name}.scales": block.scales}
        if block.minimums is not None:
            stored[f"{name}.minimums"] = block.minimums
        weights[name] = block.dequantize()
    save_file(stored, str(directory / "blocks.safetensors"))
    save_file(weights, str(directory / "model.safetensors"))
    (directory / "config.json").write_text("{}")
    (heads / "heads.json").write_text("[]")

    pieces = pack(directory, heads, tmp_path / "pieces", 1000)
    assert len(pieces) > 2
    assert is_parcel(tmp_path / "pieces")
    restored = unpack(tmp_path / "pieces", tmp_path / "out")

    again = load_file(str(restored / "model.safetensors"))
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert {path.name for path in restored.iterdir()} == {
        "config.json",
        "model.safetensors",
        "exit_heads",
    }
    assert (restored / "exit_heads" / "heads.json").read_text() == "[]"


def test_what_is_not_quantized_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only quantized"):
        pack(tmp_path, None, tmp_path / "pieces", 1000)
