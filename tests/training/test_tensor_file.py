"""Tensors appear whole or not at all, for everyone who may read the directory."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training.tensor_file import write_tensors

pytestmark = pytest.mark.torch


def test_readable_by_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    before = os.umask(0o022)
    try:
        write_tensors(path, {"x": torch.eye(2).T})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
    assert torch.equal(load_file(str(path))["x"], torch.eye(2))


def test_a_full_disk_leaves_the_old_file_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "heads.safetensors"
    write_tensors(path, {"x": torch.eye(2)})

    def full(partial: Path, content: bytes) -> None:
        partial.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        write_tensors(path, {"x": torch.zeros(2)})
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(load_file(str(path))["x"], torch.eye(2))
