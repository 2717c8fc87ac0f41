"""`bench host` on a modelled device prints a line per case, and drafts change no token."""

import sys
from pathlib import Path

import pytest

from benchmarks import host
from benchmarks.imagined_device import DeviceClock

pytestmark = pytest.mark.torch


def test_a_line_for_every_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [(name, 2, temperature) for name in host.WAYS for temperature in (0.0, 0.8)]
    monkeypatch.setattr(host, "CASES", cases)
    monkeypatch.setattr(sys, "argv", ["host", "--steps", "96"])
    host.main()
    header, *lines = capsys.readouterr().out.splitlines()[-1 - len(cases) :]
    assert header.split()[-8:] == list(host.FIGURES)
    for (name, rows, temperature), line in zip(cases, lines, strict=True):
        figures = dict(zip(host.FIGURES, map(float, line.split()[-8:]), strict=True))
        assert line.startswith(name)
        assert line.split()[-10:-8] == [str(rows), str(temperature)]
        assert min(figures["worker"], figures["scheduler"], figures["speed"]) > 0.0
        # Even where drafts never pay, one is tried now and then.
        assert figures["drafts"] > 1.0 if name.endswith("draft") else figures["drafts"] < 0.5
        assert (figures["felt"] > 0.0) or not name.endswith("draft")


def test_drafts_change_no_token(tmp_path: Path) -> None:
    way = host.WAYS["look-ups and heads draft"]
    engine, worker = host.make_engine(way, tmp_path)
    requests = host.requests(3, 0.8, 40)
    drafted = engine.generate(requests)
    assert any(row.drafts for step in worker.steps for row in step.rows)
    plain, _ = host.make_engine(host.Way("plain", drafts=False, period=way.period), tmp_path)
    assert [r.token_ids for r in plain.generate(requests)] == [r.token_ids for r in drafted]


def test_a_device_does_not_wait_between_plain_steps(tmp_path: Path) -> None:
    """The next pass is launched before the host reads, which hides the time of a launch."""
    engine, worker = host.make_engine(host.WAYS["plain"], tmp_path, DeviceClock(launch_s=50e-6))
    engine.generate(host.requests(1, 0.0, 40))
    steps = worker.steps[2:]
    felt = [step for step in steps if step.between.felt_s + step.inside.felt_s > 0.0]
    assert len(felt) < len(steps) / 4


def test_a_device_feels_what_keeps_it_waiting() -> None:
    clock = DeviceClock()
    clock.tell()
    with clock.playing():
        clock.run(2.0)
    sum(range(100_000))  # while the device computes
    clock.wait_until(clock.free_at)
    began = clock()
    sum(range(100_000))
    host_s = clock() - began
    with clock.playing():
        clock.run(1.0)
    work = clock.tell()
    assert host_s <= work.felt_s < work.host_s < 1.0, "waiting is no work"
    assert (work.num_launches, work.num_reads) == (2, 1)
