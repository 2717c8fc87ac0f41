"""Where stderr is no terminal, progress is a line now and then, and one at the end."""

import pytest

from training import progress
from training.progress import ProgressReport


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_are_seconds_apart_and_the_end_is_said_once(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressReport("work", 40, "pieces") as report:
        for done in (1, 2, 20, 21, 40, 40):
            report.update(done, "so far")
            clock[0] += 6
    assert capsys.readouterr().err.splitlines() == [
        "work: 20/40 pieces (1.6/s) so far",
        "work: 40/40 pieces (1.6/s) so far",
    ]


def test_what_comes_at_once_has_no_pace(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressReport("work", 7, "pieces") as report:
        clock[0] += 3
        report.update(7)
    assert capsys.readouterr().err == "work: 7/7 pieces\n"


def test_nothing_is_said_where_nobody_wants_it(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressReport("work", 2, "pieces", is_silent=True) as report:
        clock[0] += 60
        report.update(2)
    assert capsys.readouterr().err == ""
