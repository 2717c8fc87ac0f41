"""Flags of `adadecode heads` that make no sense, and files that cannot be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.cli import main

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    "flags",
    [
        ("--epochs", "0"),
        ("--epochs", "-1"),
        ("--tokens", "0"),
        ("--max-new-tokens", "-1"),
        ("--memory-gib", "nan"),
        ("--memory-gib", "0"),
        ("--learning-rate", "inf"),
        ("--exit-layers", "abc"),
        ("--exit-layers", ""),
        ("--threads", "-1"),
        ("--candidates", "0"),
        ("--search-tokens", "0"),
        ("--batch-tokens", "0"),
        ("--refine", "-32"),
        ("--costs", "/nowhere/costs.json"),
    ],
)
def test_odd_numbers_are_refused_at_their_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: tuple[str, str]
) -> None:
    monkeypatch.setattr("sys.argv", ["heads", "train", "a-model", *flags])
    with pytest.raises(SystemExit) as refusal:
        main()
    assert refusal.value.code == 2
    assert f"argument {flags[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "has no heads.json"), ("{", "heads.json is not JSON"), ("[]", "not a JSON object")],
)
def test_heads_that_cannot_be_shown_are_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: str | None,
    named: str,
) -> None:
    if content is not None:
        (tmp_path / "heads.json").write_text(content)
    monkeypatch.setattr("sys.argv", ["heads", "show", str(tmp_path)])
    assert main() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "heads.json").write_text(json.dumps({"figures": "x" * 10}))
    reading, writing = os.pipe()
    os.close(reading)
    run = subprocess.run(
        [sys.executable, "-m", "server.cli", "heads", "show", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (run.returncode, run.stderr) == (141, b"")
