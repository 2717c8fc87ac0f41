"""The kernels' sources compile for every vector width, also for those this machine lacks."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from engine.model.ops import native
from engine.model.ops.native.build import library_path

COMPILER = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
SOURCES = sorted(map(str, Path(native.__file__).parent.glob("*.c")))
FLAGS = ["-std=gnu11", "-fsyntax-only", "-Werror", "-Wall", "-Wno-psabi"]


@pytest.mark.skipif(
    COMPILER is None or platform.machine() not in ("x86_64", "AMD64"), reason="an x86 compiler"
)
@pytest.mark.parametrize("machine", ["x86-64", "haswell", "skylake-avx512"])
def test_kernels_compile_for_every_width(machine: str) -> None:
    command = [str(COMPILER), *FLAGS, f"-march={machine}", *SOURCES]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr[:2000]


@pytest.mark.skipif(COMPILER is None, reason="a compiler")
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_to(compiler: str, sources: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()

    monkeypatch.setattr("engine.model.ops.native.build._compile", compile_to)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADADECODE_CACHE", "~/cache")
    kept = library_path()
    assert kept.parent == tmp_path / "cache" / "kernels"

    (tmp_path / "file").touch()
    monkeypatch.setenv("ADADECODE_CACHE", "~/file")
    alone = library_path()
    assert alone.is_file()
    assert not alone.is_relative_to(tmp_path / "file")
