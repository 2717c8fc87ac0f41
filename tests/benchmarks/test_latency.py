"""The whole command on a tiny model with untrained heads: they draft, and are mostly wrong."""

import json

import pytest
import torch
from character_tokenizer import write_character_tokenizer
from safetensors.torch import save_file
from tiny_model import HIDDEN, VOCAB, write_tiny_llama

from benchmarks.cli import main
from engine.model.exit_head import FORMAT_VERSION
from engine.model.spec import ModelSpec
from engine.model.weights import WeightReader

pytestmark = pytest.mark.torch

EXITS = (2, 4)


@pytest.fixture
def model(tmp_path):
    directory = write_tiny_llama(tmp_path / "model")
    write_character_tokenizer(directory)
    return directory


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [("greet", "hello there"), ("greet", "good day"), ("ask", "why?")]
    file.write_text("".join(json.dumps({"task": t, "prompt": p}) + "\n" for t, p in rows))
    return file


def write_logit_lens(model, directory):
    """Write heads that use the state at the exit as the last state."""
    directory.mkdir()
    tensors = {"vocabulary": torch.arange(VOCAB, dtype=torch.int32)}
    for layer in EXITS:
        tensors |= {
            f"exits.{layer}.norm": torch.ones(HIDDEN),
            f"exits.{layer}.previous_norm": torch.ones(HIDDEN),
            f"exits.{layer}.project": torch.eye(HIDDEN),
            f"exits.{layer}.project_previous": torch.zeros(HIDDEN, HIDDEN),
            f"exits.{layer}.other": torch.zeros(HIDDEN),
        }
    save_file(tensors, str(directory / "heads.safetensors"))
    calibration = {"edges": [0.5, 1.0], "greedy": [0.5, 0.9], "sampled": [0.5, 0.9]}
    facts = {
        "format_version": FORMAT_VERSION,
        "fingerprint": WeightReader(model, ModelSpec.from_directory(model)).fingerprint(),
        "hidden_size": HIDDEN,
        "exit_layers": list(EXITS),
        "calibration": {str(layer): calibration for layer in EXITS},
    }
    (directory / "heads.json").write_text(json.dumps(facts))
    return directory


def bench(monkeypatch, model, *flags):
    common = ["--device", "cpu", "--backend", "torch", "--threads", "1", "--max-tokens", "8"]
    monkeypatch.setattr("sys.argv", ["bench", "latency", str(model), *common, *map(str, flags)])
    return main()


def test_every_mode_gives_the_same_tokens(monkeypatch, capsys, tmp_path, model, prompts):
    heads = write_logit_lens(model, tmp_path / "heads")
    report = tmp_path / "report.json"
    flags = ("--heads", heads, "--threshold", 0, "--concurrency", "1,2", "--prompts", prompts)

    status = bench(monkeypatch, model, *flags, "--json", report)

    assert status == 0
    content = json.loads(report.read_text())
    tasks = [(entry["concurrency"], entry["task"]) for entry in content["comparisons"]]
    assert tasks == [(1, "greet"), (1, "ask"), (1, "all"), (2, "all")]
    assert content["comparisons"][2]["drafts"]["num_draft_tokens"] > 0
    agreements = {one["mode"]: one["num_equal"] for one in content["agreements"]}
    assert agreements == {"plain": 6, "early-exit": 6, "transformers": 3}
    assert "early-exit = plain: 6 of 6" in capsys.readouterr().out


def test_without_heads_drafts_are_looked_up(monkeypatch, capsys, model, prompts):
    flags = ("--modes", "plain,early-exit", "--concurrency", "1", "--prompts", prompts)
    assert bench(monkeypatch, model, *flags, "--clock", "cpu") == 0
    assert "early-exit = plain: 3 of 3" in capsys.readouterr().out


def test_transformers_compute_in_the_type_of_activations_whatever_weights_are_kept_as(
    monkeypatch, capsys, model, prompts
):
    flags = ("--backend", "native", "--quantization", "int8", "--modes", "plain,transformers")
    assert bench(monkeypatch, model, *flags, "--concurrency", "1", "--prompts", prompts) == 0
    assert "float32, int8 weights on cpu" in capsys.readouterr().out
