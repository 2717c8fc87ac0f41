"""`bench heads` compares heads on a tiny model, by stored costs."""

import json
from pathlib import Path

import pytest
from character_tokenizer import write_character_tokenizer
from tiny_model import write_tiny_heads, write_tiny_llama

from benchmarks.cli import main

pytestmark = pytest.mark.torch


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = write_tiny_llama(tmp_path / "model")
    write_character_tokenizer(directory)
    write_tiny_heads(directory, tmp_path / "shallow", [1])
    write_tiny_heads(directory, tmp_path / "deep", [3])
    rows = [("greet", "hello there"), ("ask", "why?"), ("greet", "good day"), ("ask", "who?")]
    lines = (json.dumps({"task": task, "prompt": prompt}) + "\n" for task, prompt in rows)
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    return directory


@pytest.fixture(autouse=True)
def brief_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.worker.cost_profile._ROUNDS", 1)
    monkeypatch.setattr("training.engines._TRAFFIC_ROWS", (1, 2))
    monkeypatch.setattr("training.engines._TRAFFIC_ROUNDS", 1)


def bench(monkeypatch: pytest.MonkeyPatch, command: str, model: Path, *flags: object) -> int:
    common = ["--device", "cpu", "--backend", "torch", "--threads", "1", "--max-tokens", "8"]
    common += ["--prompts", str(model.parent / "prompts.jsonl")]
    monkeypatch.setattr("sys.argv", ["bench", command, str(model), *common, *map(str, flags)])
    return main()


def test_the_same_costs_give_the_same_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    shallow, deep = model.parent / "shallow", model.parent / "deep"
    costs, report = model.parent / "costs.json", model.parent / "report.json"
    flags = ("--heads", shallow, "--heads", deep, "--costs", costs, "--json", report)
    reports = []
    for _ in range(2):
        assert bench(monkeypatch, "heads", model, *flags, "--concurrency", "1,2") == 0
        reports.append(json.loads(report.read_text()))
    assert reports[0]["figures"] == reports[1]["figures"]
    rows = [(each["heads"], each["concurrency"]) for each in reports[0]["figures"]]
    assert rows == [("shallow", 1), ("deep", 1), ("shallow", 2), ("deep", 2)]
    for figures in reports[0]["figures"]:
        assert set(figures["tasks"]) == {"greet", "ask"}
        assert figures["verified_per_step"] >= figures["committed_per_step"] >= 1.0
    assert "shallow = plain: 8 of 8" in capsys.readouterr().out


def test_what_the_modelled_clock_cannot_tell_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    one = ("--concurrency", "1")
    modes = ("--modes", "plain,transformers")
    assert bench(monkeypatch, "latency", model, *one, *modes, "--clock", "modelled") == 2
    assert "cannot time transformers" in capsys.readouterr().err
    assert bench(monkeypatch, "latency", model, *one, "--costs", model / "costs.json") == 2
    assert "only --clock modelled" in capsys.readouterr().err
    heads = ("--heads", model.parent / "deep") * 2
    assert bench(monkeypatch, "heads", model, *heads) == 2
    assert "every directory once" in capsys.readouterr().err


def test_latency_by_the_modelled_clock_leaves_out_what_it_cannot_tell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    flags = ("--heads", model.parent / "deep", "--clock", "modelled", "--concurrency", "2")
    assert bench(monkeypatch, "latency", model, *flags, "--continuous") == 0
    out = capsys.readouterr().out
    assert "2 prompts at once, of one task" in out
    assert "the next prompt begins where one ends" in out
    assert "ms of a step by tokens" in out
    assert "transformers:" not in out
