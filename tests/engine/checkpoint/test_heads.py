"""Which exit heads are used for a model."""

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


def test_own_heads_come_before_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "_SHIPPED_HEADS", tmp_path / "shipped")
    shipped = _heads(tmp_path / "shipped" / ALIAS)
    (tmp_path / "model" / "exit_heads" / "work").mkdir(parents=True)
    assert find_heads(ALIAS, tmp_path / "model") == shipped, "none are trained yet"
    (tmp_path / "model" / "exit_heads" / "heads.json").write_text("{}")
    assert find_heads(ALIAS, tmp_path / "model") == tmp_path / "model" / "exit_heads"


def test_a_directory_that_is_no_conversion_needs_no_built_in_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("hashing it takes a second, and a cache")

    monkeypatch.setattr(heads, "builtin_file", never)
    assert find_heads(str(tmp_path), tmp_path) is None


@pytest.mark.model
def test_the_converted_directory_counts_as_the_alias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = default_model_directory()
    monkeypatch.setattr(heads, "_SHIPPED_HEADS", tmp_path)
    expected = _heads(tmp_path / ALIAS)
    assert find_heads(str(directory), directory) == expected
