"""Idle connections and twice the load, on the real server around a worker that computes nothing."""

import argparse
from pathlib import Path

import pytest
from fast_worker_serve import MODEL, FastWorker, Speller
from live_server import serving

from benchmarks import overload
from benchmarks.overload import OverloadReport, Phase
from engine import AsyncEngine, EngineConfig, ModelConfig
from engine.config import SchedulerConfig
from server.app import create_app
from server.service import InferenceService, ServedModel
from server.settings import ServerSettings


def report(**changes: int) -> OverloadReport:
    phase = Phase(name="", idle_connections=3, refusals_ms=[1.0])
    figures = OverloadReport(idle_connections=3, accepted=1, phases=[phase])
    for name, value in changes.items():
        setattr(figures, name, value)
    return figures


def test_clean_is_nobody_lost_wronged_snubbed_or_cut_off() -> None:
    assert report().is_clean
    for change in ("lost", "wrong", "curt"):
        assert not report(**{change: 1}).is_clean
    assert not report(accepted=0).is_clean
    assert not report(idle_connections=4).is_clean
    assert not OverloadReport(accepted=1, phases=[Phase(name="")]).is_clean, "nobody was refused"


def test_probes_are_answered_and_who_is_refused_is_told_when_to_come_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def load() -> ServedModel:
        scheduler = SchedulerConfig(max_num_seqs=2, max_num_queued_requests=2)
        config = EngineConfig(model=ModelConfig(directory=Path()), scheduler=scheduler)
        engine = AsyncEngine(config, FastWorker(0.01), Speller())  # type: ignore[arg-type]
        await engine.start()
        return ServedModel(engine, Speller())  # type: ignore[arg-type]

    settings = ServerSettings(model=MODEL, access_log="none")
    parser = argparse.ArgumentParser()
    overload.add_arguments(parser)
    flags = ("--idle", "300", "--seconds", "1", "--max-num-seqs", "2")
    with serving(create_app(InferenceService((MODEL,), load), settings)) as url:
        args = [MODEL, "--base-url", url, *flags, "--max-num-queued-requests", "2"]
        assert overload.run(parser.parse_args(args)) == 0
    assert "300 of 300 open" in capsys.readouterr().out
