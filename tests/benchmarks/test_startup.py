"""Times the start of a server that only waits."""

from contextlib import asynccontextmanager

import pytest

from benchmarks import startup


def test_every_start_has_a_line_with_its_own_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = iter([10.0, 13.7, 20.0, 24.1])
    asked = []

    @asynccontextmanager
    async def ready_server(flags):
        asked.append(flags)
        yield

    monkeypatch.setattr(startup.time, "perf_counter", lambda: next(moments))
    monkeypatch.setattr(startup, "ready_server", ready_server)
    monkeypatch.setattr(startup, "describe_machine", dict)
    monkeypatch.setattr("sys.argv", ["startup", "--times", "2", "--serve-flag=--no-ui"])

    startup.main()

    assert capsys.readouterr().out.splitlines() == ["ready after  3.7 s", "ready after  4.1 s"]
    assert asked == [["--no-ui"], ["--no-ui"]]
