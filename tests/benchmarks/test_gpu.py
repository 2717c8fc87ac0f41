"""The GPU benchmark runs whole on a CPU, and a part that fails loses its figures alone."""

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.report import Part, Report

pytestmark = pytest.mark.torch


def test_it_runs_on_tiny_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--quick", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", *arguments])

    assert command.main() == 0

    written = json.loads(file.read_text())
    assert written["failures"] == {}
    parts = {figure["part"] for figure in written["figures"]}
    assert parts == set(written["durations_s"])
    assert len(parts) == 8
    missed = [figure for figure in written["figures"] if figure["is_met"] is False]
    assert missed == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("took ")
    assert "plain / transformers eager" in lines[-2] or "agree with transformers" in lines[-2]


def report(file: Path | None = None, time_limit_s: float = 60.0) -> Report:
    return Report(facts={}, file=file, time_limit_s=time_limit_s)


def test_a_part_that_fails_loses_only_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(part: Part) -> None:
        part.add("speed", 2.0, "x", least=3.0)

    def fail(part: Part) -> None:
        raise RuntimeError("no kernel image")

    whole = report(tmp_path / "out.json")
    whole.run("first", 10, fail)
    whole.run("second", 10, measure)
    whole.print_table()

    written = json.loads((tmp_path / "out.json").read_text())
    assert "no kernel image" in written["failures"]["first"]
    assert [figure["name"] for figure in written["figures"]] == ["speed"]
    out = capsys.readouterr().out
    assert "MISSED" in out
    assert out.index("Traceback") < out.rindex("speed")


def test_a_part_that_takes_too_long_is_ended() -> None:
    def dawdle(part: Part) -> None:
        part.add("before", 1.0)
        time.sleep(30)

    whole = report()
    started = time.perf_counter()
    whole.run("slow", 1.1, dawdle)
    assert time.perf_counter() - started < 10
    assert "OutOfTime" in whole.failures["slow"]
    assert len(whole.figures) == 1


def test_no_part_begins_when_the_time_is_over() -> None:
    whole = report(time_limit_s=0.0)
    whole.run("late", 10, lambda part: part.add("never", 1.0))
    assert whole.figures == []
    assert "no time was left" in whole.failures["late"]
