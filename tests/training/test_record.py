"""States recorded while generating are those of a teacher-forced pass, to the bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from character_tokenizer import write_character_tokenizer
from default_model import default_model_directory
from safetensors.torch import load_file
from tiny_model import LAYERS, write_tiny_llama

from engine.config import ModelConfig
from training import generate as generating
from training import questions
from training.collect import collect
from training.generate import GenerationOptions, generate
from training.generations import read_generations, split_held_out
from training.pipeline import load_decoder
from training.prompts import Prompt
from training.states import ROWS_PER_SHARD

pytestmark = pytest.mark.torch

EXITS = [1, 4]
# Some prompts share a beginning, so that blocks are shared.
PROMPTS = [Prompt("qa", f"{'many words to begin with, ' * (n % 3)}number {n}?") for n in range(150)]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> GenerationOptions:
    directory = write_tiny_llama(tmp_path_factory.mktemp("tiny"))
    write_character_tokenizer(directory)
    return GenerationOptions(
        model=ModelConfig(directory=directory, device="cpu", num_threads=1),
        work=tmp_path_factory.mktemp("work"),
        num_tokens=100_000,
        max_new_tokens=6,
        max_bytes=1 << 26,
    )


@pytest.fixture(autouse=True)
def asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_MOST_TIMES", 1)


def shard_files(directory: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(directory.glob("*.safetensors"))}


def assert_same_states(recorded: Path, collected: Path) -> None:
    names = shard_files(recorded).keys()
    assert names == shard_files(collected).keys()
    for name in names:
        mine, other = load_file(str(recorded / name)), load_file(str(collected / name))
        assert mine.keys() == other.keys()
        for key, tensor in mine.items():
            assert torch.equal(tensor, other[key]), (name, key)


def test_recorded_states_are_the_collected_ones(
    options: GenerationOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generating, "_GROUP", 40)
    monkeypatch.setattr(generating, "_BATCH", 7)  # the last batch is smaller
    generate(options, PROMPTS, EXITS)
    decoder = load_decoder(options.model)
    splits = zip(
        split_held_out(read_generations(options.generations)),
        (options.states, options.held_out_states),
        strict=True,
    )
    for rows, directory in splits:
        assert len(shard_files(directory)) == 3 * -(-len(rows) // ROWS_PER_SHARD)
        collect(decoder, rows, EXITS, tmp_path / directory.name)
        assert_same_states(directory, tmp_path / directory.name)


@pytest.mark.model
def test_on_the_default_model_as_well(tmp_path: Path) -> None:
    options = GenerationOptions(
        model=ModelConfig(directory=default_model_directory(), device="cpu", quantization="none"),
        work=tmp_path / "work",
        num_tokens=100,
        max_new_tokens=8,
        max_bytes=1 << 28,
    )
    decoder = load_decoder(options.model)
    generate(options, PROMPTS[:4], [3], decoder)
    rows, _ = split_held_out(read_generations(options.generations))
    assert rows
    collect(decoder, rows, [3], tmp_path / "collected")
    assert_same_states(options.states, tmp_path / "collected")


def test_what_a_killed_or_crowded_run_did_not_record_is_collected(
    options: GenerationOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generating, "_GROUP", 20)
    per_token = 2 * LAYERS * 2 * 16 * 4
    crowded = replace(options, work=tmp_path / "work", num_tokens=60, max_bytes=900 * per_token)
    generate(crowded, PROMPTS, EXITS)
    generate(replace(crowded, num_tokens=100_000), PROMPTS, EXITS)  # resumes, as after a kill
    rows, _ = split_held_out(read_generations(crowded.generations))
    recorded = shard_files(crowded.states)
    whole = [path for name, path in recorded.items() if f"-{ROWS_PER_SHARD}." in name]
    assert whole
    stamps = {path: path.stat().st_mtime_ns for path in whole}
    decoder = load_decoder(crowded.model)
    paths = collect(decoder, rows, EXITS, crowded.states)
    assert any(path not in stamps for path in paths[1].values()), "a shard was cut in two"
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    collect(decoder, rows, EXITS, tmp_path / "again")
    for shard in paths:
        for path in shard.values():
            mine, other = load_file(str(path)), load_file(str(tmp_path / "again" / path.name))
            assert all(torch.equal(tensor, other[key]) for key, tensor in mine.items())
