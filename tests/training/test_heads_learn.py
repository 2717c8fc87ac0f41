"""Heads of a tiny model are trained, predict its tokens, and load for this model only."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_model import StepDriver, load_tiny, sequence_start, write_tiny_llama

from engine.errors import HeadsMismatch
from engine.model.decoder import Decoder
from engine.model.exit_head import format_version, load_heads
from engine.model.ops.torch_ops import TorchOps
from engine.worker.learning.unit_rms import unit_rms
from training.collect import collect
from training.evaluate import evaluate_head
from training.generations import Generation
from training.head_module import HeadModule, feature_scale
from training.states import LAST, Shards
from training.train_head import (
    HeadTrainer,
    TrainingConfig,
    carry_over,
    fit_linear,
    teacher_probs,
    unrolled_loss,
)

pytestmark = pytest.mark.torch

EXIT = 4


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_tiny(write_tiny_llama(tmp_path_factory.mktemp("tiny")), TorchOps("cpu"))


@pytest.fixture(scope="module")
def rows(decoder: Decoder) -> list[Generation]:
    starts = [
        sequence_start(i, [1 + i % 90, 2, 3 + i % 7], temperature=0.7, seed=i) for i in range(12)
    ]
    tokens, _ = StepDriver(decoder, 16).generate(starts, 40)
    return [Generation("test", ids[:3], ids[3:], 0.7) for ids in tokens.values()]


@pytest.fixture(scope="module")
def shards(
    decoder: Decoder, rows: list[Generation], tmp_path_factory: pytest.TempPathFactory
) -> Shards:
    paths = collect(decoder, rows, [2, EXIT], tmp_path_factory.mktemp("hidden"))
    return Shards([(shard[LAST], shard[EXIT]) for shard in paths], 1 << 20)


def new_head(decoder: Decoder, shards: Shards) -> tuple[HeadModule, torch.Tensor]:
    token_ids = torch.arange(5, 90, dtype=torch.int32)
    lm_head = decoder.lm_head_rows(token_ids) * decoder.final_norm
    sample = next(shards.groups())
    head = HeadModule(feature_scale(sample.exit), feature_scale(sample.last), lm_head)
    return head, token_ids


def test_collected_states_are_those_of_decoding(
    decoder: Decoder, rows: list[Generation], shards: Shards
) -> None:
    states = next(shards.groups())
    assert int(states.is_first.sum()) == len(rows)
    first_row = states.target[1 : len(rows[0].output_ids) + 1]
    assert len(first_row) == len(rows[0].output_ids)
    logits = (states.last[1:2].float() * decoder.final_norm) @ decoder.lm_head_rows(
        torch.arange(97, dtype=torch.int32)
    ).T
    assert int(logits.argmax()) == int(states.target[1])
    assert float(logits.logsumexp(-1)) == pytest.approx(float(states.log_normalizer[1]), abs=0.05)
    assert float(unit_rms(states.exit.float()).pow(2).mean()) == pytest.approx(1.0, abs=0.01)


def test_collection_resumes(decoder: Decoder, rows: list[Generation], tmp_path: Path) -> None:
    paths = collect(decoder, rows[:5], [EXIT], tmp_path)
    stamps = {part: path.stat().st_mtime_ns for part, path in paths[0].items()}
    further = collect(decoder, rows[:5], [2, EXIT], tmp_path)[0]
    assert {part: further[part].stat().st_mtime_ns for part in stamps} == stamps
    assert 2 in further, "a further layer costs a further part"
    longer = collect(decoder, rows, [EXIT], tmp_path)
    assert longer != paths, "a shard that was short is made anew once rows were added"


def test_training_lowers_the_loss_and_beats_the_linear_fit(
    decoder: Decoder, shards: Shards
) -> None:
    torch.manual_seed(0)
    head, token_ids = new_head(decoder, shards)
    states = next(shards.groups())
    config = TrainingConfig(epochs=30, batch_tokens=64, depth=2, learning_rate=2e-3)
    untrained = unrolled_loss(head, states, 0, config).item()
    fit_linear(head, states)
    fitted = evaluate_head(head, shards, token_ids, depth=3)
    trainer = HeadTrainer(head, shards, config)
    while not trainer.is_done:
        trainer.run_epoch()
    figures = evaluate_head(head, shards, token_ids, depth=3)
    assert unrolled_loss(head, states, 0, config).item() < untrained
    assert figures.agreement > fitted.agreement
    assert figures.agreement > 0.5, "it has seen this very text"
    assert figures.calibration.greedy[-1] > figures.calibration.greedy[1]


def test_the_loss_is_the_cross_entropy_to_the_whole_final_distribution(
    decoder: Decoder, shards: Shards
) -> None:
    head, _ = new_head(decoder, shards)
    with torch.no_grad():
        head.other.normal_()
    states = next(shards.groups())
    fit_linear(head, states)
    config = TrainingConfig(batch_tokens=16, depth=1)
    here = slice(1, 17)
    last = states.last[:17].float()
    probs = teacher_probs(head, last, states.log_normalizer[:17])[here]
    logits = head.logits(head.state(states.exit[here].float(), last[:16]))
    kept = ~states.is_first[here]
    losses = torch.nn.functional.cross_entropy(logits, probs, reduction="none")[kept]
    loss = unrolled_loss(head, states, 0, config)
    assert loss.item() == pytest.approx(losses.mean().item(), rel=1e-5)
    ours = torch.autograd.grad(loss, [head.project, head.other])
    plain = torch.autograd.grad(losses.mean(), [head.project, head.other])
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_less_data_than_one_step_takes_is_learned_from_all_the_same(
    decoder: Decoder, shards: Shards
) -> None:
    for seed in range(4):
        head, _ = new_head(decoder, shards)
        trainer = HeadTrainer(head, shards, TrainingConfig(epochs=1, batch_tokens=4096, seed=seed))
        trainer.run_epoch()
        assert head.project.abs().sum() > 0


def test_a_refinement_begins_with_the_linear_fit_and_learns(
    decoder: Decoder, shards: Shards
) -> None:
    head, _ = new_head(decoder, shards)
    states = next(shards.groups())
    fit_linear(head, states)
    config = TrainingConfig(epochs=8, batch_tokens=64, depth=2, learning_rate=2e-3)
    fitted = unrolled_loss(head, states, 0, config).item()
    head.refine(64)
    assert unrolled_loss(head, states, 0, config).item() == fitted
    linear = {"project", "project_previous", "other"}
    for name, parameter in head.named_parameters():
        parameter.requires_grad_(name not in linear)
    trainer = HeadTrainer(head, shards, config)
    while not trainer.is_done:
        trainer.run_epoch()
    assert unrolled_loss(head, states, 0, config).item() < fitted, "it has learned alone"


def test_a_head_carried_over_to_another_layer_expects_much_the_same(
    decoder: Decoder, rows: list[Generation], shards: Shards, tmp_path: Path
) -> None:
    paths = collect(decoder, rows, [0, 2], tmp_path)
    here = next(Shards([(shard[LAST], shard[2]) for shard in paths], 1 << 20).groups())
    there = next(shards.groups())
    head, token_ids = new_head(decoder, shards)
    fit_linear(head, there)
    before = evaluate_head(head, shards, token_ids, depth=1).agreement
    config = TrainingConfig(batch_tokens=64, depth=1)
    misused = unrolled_loss(head, here, 0, config).item()
    carry_over(head, there, here)
    assert unrolled_loss(head, here, 0, config).item() < misused
    mine = Shards([(shard[LAST], shard[2]) for shard in paths], 1 << 20)
    assert evaluate_head(head, mine, token_ids, depth=1).agreement > 0.5 * before
    same, _ = new_head(decoder, shards)
    fit_linear(same, there)
    hidden, previous = there.exit[1:9].float(), there.last[:8].float()
    expected = same.state(hidden, previous)
    carry_over(same, there, there)
    torch.testing.assert_close(same.state(hidden, previous), expected, atol=0.02, rtol=0.05)


def write_heads(directory: Path, decoder: Decoder, head: HeadModule, ids: torch.Tensor) -> None:
    directory.mkdir()
    tensors = {"vocabulary": ids, **head.tensors(EXIT)}
    save_file(tensors, str(directory / "heads.safetensors"))
    rates = {"edges": [0.5, 1.0], "greedy": [0.1, 0.9], "sampled": [0.1, 0.9]}
    facts = {
        "format_version": format_version(tensors),
        "fingerprint": decoder.fingerprint,
        "hidden_size": decoder.spec.hidden_size,
        "exit_layers": [EXIT],
        "calibration": {str(EXIT): rates},
    }
    (directory / "heads.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("refinement_size", [0, 64])
def test_loaded_head_computes_what_was_trained(
    decoder: Decoder, shards: Shards, tmp_path: Path, refinement_size: int
) -> None:
    head, ids = new_head(decoder, shards)
    states = next(shards.groups())
    fit_linear(head, states)
    if refinement_size:
        head.refine(refinement_size)
        assert head.refinement is not None
        torch.nn.init.normal_(head.refinement.down, std=0.02)
    write_heads(tmp_path / "heads", decoder, head, ids)
    loaded = load_heads(tmp_path / "heads", decoder).heads[0]
    hidden, previous = states.exit[1:6].float(), states.last[:5].float()
    with torch.inference_mode():
        # The scale of the inputs must not matter.
        state, logits, other = loaded(hidden * 3.0, previous * 0.5, [1] * 5)
        expected_state = head.state(hidden, previous)
        expected = head.logits(expected_state)
    torch.testing.assert_close(state, expected_state, atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(torch.cat((logits, other), 1), expected, atol=5e-2, rtol=1e-2)


def test_heads_of_other_weights_are_refused(
    decoder: Decoder, shards: Shards, tmp_path: Path
) -> None:
    head, ids = new_head(decoder, shards)
    write_heads(tmp_path / "heads", decoder, head, ids)
    other = load_tiny(write_tiny_llama(tmp_path / "other", seed=1), TorchOps("cpu"))
    with pytest.raises(HeadsMismatch, match="other weights"):
        load_heads(tmp_path / "heads", other)
    with pytest.raises(HeadsMismatch, match=r"no heads\.json"):
        load_heads(tmp_path / "nothing", decoder)
