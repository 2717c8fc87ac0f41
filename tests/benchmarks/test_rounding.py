"""`bench rounding` on a tiny model, and the figures it is made of."""

import math

import pytest
import torch
from backends import needs_native
from character_tokenizer import write_character_tokenizer
from tiny_model import write_tiny_llama

from benchmarks.cli import main
from benchmarks.rounding import Drift

pytestmark = pytest.mark.torch


def test_a_form_that_says_the_same_has_no_divergence() -> None:
    drift, logits = Drift(), torch.randn(5, 8)
    drift.add(logits, logits, torch.tensor([0, 1, 2, 3, 4]))
    _, divergence, same_choices = drift.row()
    assert float(divergence) == 0
    assert same_choices == "100.00%"


def test_figures_are_means_over_tokens() -> None:
    drift = Drift()
    even, sure = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    drift.add(even, sure, torch.tensor([1]))
    drift.add(sure, sure, torch.tensor([1]))
    perplexity, divergence, same_choices = drift.row()
    assert float(perplexity) == pytest.approx(math.sqrt(2 * 4 / 3), abs=1e-3)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(divergence) == pytest.approx(expected / 2, abs=1e-4)
    assert same_choices == "50.00%"


@needs_native
def test_every_form_has_a_line(tmp_path, monkeypatch, capsys) -> None:
    model = write_tiny_llama(tmp_path / "model")
    write_character_tokenizer(model)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "abcabcabc", "task": "a"}\n')
    monkeypatch.setattr("sys.argv", ["bench", "rounding", str(model), "--prompts", str(prompts)])

    assert main() == 0

    lines = capsys.readouterr().out.strip().splitlines()[-6:]
    assert [line[:32].strip() for line in lines] == [
        "float32",
        "bfloat16",
        "int8",
        "int8, int8 activations",
        "q4",
        "q4, int8 activations",
    ]
    divergences = [float(line.split()[-2]) for line in lines]
    assert divergences[0] == 0
    assert 0 < divergences[2] < divergences[4]
