"""Which exit heads go with a model."""

from pathlib import Path

import pytest
from default_model import ALIAS, default_model_directory

from engine.checkpoint import find_heads, heads


def _heads(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "heads.json").write_text("{}")
    return directory


def test_beside_the_weights(tmp_path: Path) -> None:
    assert find_heads(str(tmp_path), tmp_path) is None
    expected = _heads(tmp_path / "exit_heads")
    assert find_heads(str(tmp_path), tmp_path) == expected


def test_shipped_heads_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_SHIPPED_HEADS", tmp_path / "shipped")
    _heads(tmp_path / "model" / "exit_heads")
    expected = _heads(tmp_path / "shipped" / ALIAS)
    assert find_heads(ALIAS, tmp_path / "model") == expected


@pytest.mark.model
def test_the_converted_directory_counts_as_the_alias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = default_model_directory()
    monkeypatch.setattr(heads, "_SHIPPED_HEADS", tmp_path)
    expected = _heads(tmp_path / ALIAS)
    assert find_heads(str(directory), directory) == expected
