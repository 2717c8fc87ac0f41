"""The GPU benchmark runs on a CPU too, and a part that fails loses only its own figures."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.attempts import run_parts
from benchmarks.gpu.curve import curves
from benchmarks.gpu.report import Part, Report

pytestmark = pytest.mark.torch

_SCRIPT = Path(__file__).parents[1] / "support" / "gpu_parts.py"


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
    assert parts == {*command._parts()}
    assert written["facts"]["command"] == " ".join(["python -m benchmarks.gpu", *arguments])
    missed = [figure for figure in written["figures"] if figure["is_met"] is False]
    assert missed == []
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("took ")
    assert any("plain / transformers eager" in line for line in lines)
    drawn = curves(Report.read(file, 0.0).figures)
    assert [len(points) for points in drawn.values()] == [2, 2]


def report(file: Path | None = None, time_limit_s: float = 60.0) -> Report:
    return Report(facts={}, file=file, deadline=time.time() + time_limit_s)


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
        try:
            time.sleep(30)
        except Exception:  # like some libraries
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


def test_time_is_kept_for_the_parts_to_come() -> None:
    whole = report(time_limit_s=50.0)
    whole.run("greedy", 40, lambda part: part.add("never", 1.0), kept_s=50.0)
    assert whole.figures == []
    whole.run("modest", 40, lambda part: part.add("once", 1.0), kept_s=30.0)
    assert [figure.name for figure in whole.figures] == ["once"]


def test_of_little_time_as_much_is_kept() -> None:
    assert command.kept_share([0, 45, 50], 1000.0) == 1.0
    assert 0.0 < command.kept_share([0, 45, 50], 100.0) * 95 < 70


def test_a_part_knows_its_time() -> None:
    left: list[float] = []
    whole = report(time_limit_s=50.0)
    whole.run("one", 20, lambda part: left.append(part.left_s))
    assert 15.0 < left[0] <= 20.0


def run_with_children(file: Path, *parts: str) -> Report:
    def command(left: Sequence[str]) -> list[str]:
        return [sys.executable, str(_SCRIPT), str(file), ",".join(left)]

    return run_parts(command, parts, file, time.time() + 60, grace_s=0.5)


def test_a_part_that_takes_its_process_with_it_costs_no_other(tmp_path: Path) -> None:
    """Other parts run although one dies and one hangs, and what these measured before is kept."""
    parts = ("first", "dies", "second", "hangs", "third")
    whole = run_with_children(tmp_path / "out.json", *parts)
    assert [figure.part for figure in whole.figures] == list(parts)
    assert set(whole.failures) == {"dies", "hangs"}
    assert "status 9" in whole.failures["dies"]
    assert set(whole.durations_s) == set(parts)


def test_processes_that_never_begin_are_not_started_for_ever(tmp_path: Path) -> None:
    whole = run_with_children(tmp_path / "out.json", "unborn", "after")
    assert "status 3" in whole.failures["start"]
    assert whole.figures == []
