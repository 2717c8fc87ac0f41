"""How traces are made and checked; tests/system/test_traces.py runs them on a real model."""

import argparse

import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app, serving

from benchmarks import traces
from benchmarks.traces import TraceReport, make_bodies, make_trace
from engine.request import GenerationRequest


def run_on(engine: FakeEngine, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    traces.add_arguments(parser)
    with serving(fake_app(engine, access_log="none")) as url:
        return traces.run(parser.parse_args([MODEL, "--base-url", url, *flags]))


def test_traces_are_functions_of_their_seed() -> None:
    assert make_bodies(1, 12, MODEL) == make_bodies(1, 12, MODEL) != make_bodies(2, 12, MODEL)
    assert make_trace(1, 3, 12) == make_trace(1, 3, 12) != make_trace(1, 4, 12)


def test_bodies_begin_alike_and_traces_cancel_and_repeat() -> None:
    prompts = [tuple(body["prompt"][:15]) for body in make_bodies(0, 24, MODEL)]
    assert len(set(prompts)) <= len(prompts) * 2 // 3
    events = [event for number in range(5) for event in make_trace(0, number, 24)]
    assert any(event.retries_after_s is not None for event in events)
    assert any(event.leaves_after_s is None for event in events)


def test_wrong_answers_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def idle(_: object) -> dict[str, float]:
        return {"blocks": 0.0}

    monkeypatch.setattr(traces, "until_idle", idle)  # the fake engine always holds some blocks
    flags = ("--traces", "2", "--bodies", "4")
    assert run_on(FakeEngine(), *flags) == 0
    asked: set[tuple[int, ...]] = set()

    def text(request: GenerationRequest) -> str:
        is_first = request.prompt_token_ids not in asked
        asked.add(request.prompt_token_ids)
        return "right" if is_first else "wrong"

    assert run_on(FakeEngine(text=text), *flags) == 1


def test_what_is_left_behind_is_seen() -> None:
    assert TraceReport(finished=1, left_behind={"blocks": 0.0}).is_clean
    assert not TraceReport(finished=1, left_behind={"blocks": 0.1}).is_clean
    assert not TraceReport(finished=1, lost=1).is_clean
    assert not TraceReport().is_clean
