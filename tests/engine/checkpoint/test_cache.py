"""What is in the cache is whole, whenever the power was cut."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoint import cache


class Disk:
    """Records which files were on the disk when a name was given, and with what content."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: dict[str, int] = {}  # sizes by file name; 0 for a directory
        self.named: list[dict[str, int]] = []  # what was synced before each final name
        fsync, rename = os.fsync, Path.rename

        def sync(descriptor: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.synced[path.name] = 0 if path.is_dir() else path.stat().st_size
            fsync(descriptor)

        def name(path: Path, target: Path) -> Path:
            self.named.append(dict(self.synced))
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(Path, "rename", name)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk, from before the first write on."""
    return Disk(monkeypatch)


def test_a_directory_is_on_the_disk_before_it_has_its_name(tmp_path: Path, disk: Disk) -> None:
    with cache.building(tmp_path / "model") as scratch:
        (scratch / "config.json").write_text("{}")
        (scratch / "deep").mkdir()
        (scratch / "deep" / "weights").write_bytes(b"12345")

    (synced,) = disk.named
    assert synced == {"config.json": 2, "deep": 0, "weights": 5, scratch.name: 0}
    assert tmp_path.name in disk.synced, "the name itself"


def test_a_digest_is_on_the_disk_before_it_counts(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADADECODE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    cache.converted_directory(tmp_path / "model.gguf", lambda text, fraction: None)

    (synced,) = disk.named
    assert list(synced.values()) == [64]


def failing(error: OSError) -> Callable[[int], None]:
    def fail(descriptor: int) -> None:
        raise error

    return fail


def test_nothing_is_named_that_the_disk_did_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(OSError("no disk")))
    with pytest.raises(OSError, match="no disk"), cache.building(tmp_path / "model") as scratch:
        (scratch / "config.json").write_text("{}")

    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_synced_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(OSError("not for directories")))
    with cache.building(tmp_path / "model"):
        pass

    assert (tmp_path / "model").is_dir()
