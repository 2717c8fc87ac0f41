"""The ablation on a tiny model: all variants that verify are lossless."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import VOCAB, write_tiny_heads, write_tiny_llama

from benchmarks import ablation
from benchmarks.contest import Entry
from benchmarks.variants import noise, untrained, with_full_vocabulary, write_variant

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    write_tiny_heads(directory, directory / "exit_heads", [1])
    return directory


def test_variants_differ_from_the_trained_heads_as_they_say(directory: Path) -> None:
    heads = directory / "exit_heads"
    trained = load_file(str(heads / "heads.safetensors"))
    full = write_variant(heads, directory / "full", with_full_vocabulary, VOCAB)
    assert len(load_file(str(full / "heads.safetensors"))["vocabulary"]) == VOCAB
    lens = load_file(
        str(write_variant(heads, directory / "lens", untrained, VOCAB) / "heads.safetensors")
    )
    assert torch.equal(lens["exits.1.project"], torch.eye(48))
    assert not lens["exits.1.project_previous"].any()
    random = load_file(
        str(write_variant(heads, directory / "noise", noise, VOCAB) / "heads.safetensors")
    )
    assert torch.equal(random["vocabulary"], trained["vocabulary"])
    assert not torch.equal(random["exits.1.project"], trained["exits.1.project"])
    save_file(trained, str(directory / "again.safetensors"))  # no tensor was changed in place


def test_every_row_runs_and_only_the_unverified_one_changes_outputs(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tuple(
        Entry(index=i, task="t", token_ids=(5, 6, 7, 5, 6, 7, 5, 6 + i)) for i in range(2)
    )
    monkeypatch.setattr(ablation, "encode_prompts", lambda *_: prompts)
    monkeypatch.setattr(ablation, "resolve_model", Path)
    monkeypatch.setattr("engine.worker.cost_profile._ROUNDS", 1)
    two = write_tiny_heads(directory, directory / "two", [1, 3])
    table = directory / "table.md"
    args = Namespace(
        model=str(directory), heads=directory / "exit_heads", prompts=None, num_prompts=1,
        max_tokens=12, temperature=0.0, clock="cpu", costs=None, device="cpu", dtype="auto",
        threads=1, backend="torch", quantization="auto", activation_quantization="none",
        markdown=table, plot=None,
        retrained=[f"full vocabulary={directory / 'full'}", f"two exits={two}"], row=None,
        concurrency=(1,), group_by=None, continuous=False,
    )  # fmt: skip
    assert ablation.run(args) == 0
    rows = {line.split("|")[1].strip(): line for line in table.read_text().splitlines()[2:]}
    assert list(rows) == [
        "full", "no verification", "fixed single exit", "no previous-token feature",
        "full vocabulary", "original LM head, untrained", "heads of noise", "two exits",
        "heads of noise, no free drafts", "no policy", "no free drafts",
        "no second candidates", "no heads",
    ]  # fmt: skip
    assert "trained for it" in rows["full vocabulary"]
    changed = {name for name, line in rows.items() if "0 of 2" not in line}
    assert changed <= {"no verification"}
    assert "speed-up" in capsys.readouterr().out
    args.row, args.concurrency = ["two exits", "full"], (1, 2)
    assert ablation.run(args) == 0
    lines = [line.split("|") for line in table.read_text().splitlines()[2:]]
    assert [(name.strip(), count.strip()) for _, name, count, *_ in lines] == [
        ("full", "1"), ("two exits", "1"), ("full", "2"), ("two exits", "2"),
    ]  # fmt: skip
    assert all("0 of 2" in changed for *_, changed, _, _ in lines)
    args.row = ["three exits"]
    with pytest.raises(ValueError, match="'three exits' is none of 'full'"):
        ablation.run(args)


@pytest.mark.parametrize(
    "text", ["two exits", "=somewhere", "two exits=/nowhere", "heads of noise=/"]
)
def test_a_row_without_heads_is_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(ablation, "resolve_model", Path)
    args = Namespace(
        model=str(directory), heads=directory / "exit_heads", prompts=None, num_prompts=1,
        plot=None, retrained=[text],
    )  # fmt: skip
    with pytest.raises(ValueError, match="--retrained"):
        ablation.run(args)
