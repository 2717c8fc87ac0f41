"""The gradient is that of the loss of offline training, and updates along it improve a head."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from learning import Teacher, faint, first_head, no_examples, refinement_of, weights_of
from tiny_model import random_heads

from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHead, ExitHeads
from engine.worker.learning.candidate_trainer import CandidateTrainer, ReducedLmHead
from engine.worker.learning.examples import Examples
from engine.worker.learning.unit_rms import inverse_rms
from training.head_module import HeadModule

pytestmark = pytest.mark.torch


@pytest.fixture(params=[0, 32], ids=["linear", "refined"])
def heads(request: pytest.FixtureRequest, decoder: Decoder) -> ExitHeads:
    return random_heads(decoder, [2], 40, request.param)


def trainer_of(decoder: Decoder, heads: ExitHeads) -> CandidateTrainer:
    head = first_head(heads)
    lm_head = ReducedLmHead.of(head, decoder.lm_head_rows(heads.token_ids))
    return CandidateTrainer(head, lm_head, weights_of(head), refinement_of(head))


def loss_of(trainer: CandidateTrainer, examples: Examples, runs: torch.Tensor) -> float:
    """Return the mean loss of the last drafts, whose gradient the trainer accumulates."""
    state = trainer._follow(trainer._weights, examples, 0, runs).state
    logits = trainer._logits(trainer._weights, state, state * inverse_rms(state))
    return float(F.cross_entropy(logits, examples.probs(runs[-1])))


def module_of(decoder: Decoder, heads: ExitHeads, head: ExitHead) -> HeadModule:
    folded = decoder.lm_head_rows(heads.token_ids) * decoder.final_norm
    tensors = weights_of(head).named(2)
    tensors |= {"exits.2.norm": head.norm, "exits.2.previous_norm": head.previous_norm}
    if (refinement := refinement_of(head)) is not None:
        tensors |= {f"exits.2.refinement.{name}": each for name, each in asdict(refinement).items()}
    return HeadModule.from_tensors(tensors, 2, folded)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_gradient_is_that_of_training(decoder, heads, depth):
    head = first_head(heads)
    trainer = trainer_of(decoder, heads)
    module = module_of(decoder, heads, head)
    examples = no_examples()
    Teacher(decoder, heads).fill(examples, 64)
    runs = examples.runs(0, 64, depth)

    with torch.inference_mode():
        loss = loss_of(trainer, examples, runs)
        trainer.accumulate_gradient(examples, 0, runs)
    previous = examples.last(runs[0])
    for places in runs[1:-1]:
        with torch.no_grad():
            state = module.state(examples.exit(0, places), previous)
            previous = F.rms_norm(state, state.shape[-1:], eps=1e-6)
    logits = module.logits(module.state(examples.exit(0, runs[-1]), previous))
    expected = F.cross_entropy(logits, examples.probs(runs[-1]), reduction="sum")
    expected.backward()

    assert loss == pytest.approx(expected.item() / runs.shape[1], rel=1e-3)
    for mine, name in zip(
        trainer._gradients, ("project", "project_previous", "other"), strict=True
    ):
        theirs = getattr(module, name).grad
        assert torch.allclose(mine, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max())), name


@pytest.mark.parametrize(
    "heads", [0], indirect=True, ids=["linear"]
)  # no random refinement after it
@torch.inference_mode()
def test_studying_makes_it_right(decoder, heads):
    trainer = trainer_of(decoder, heads)
    shipped = faint(trainer.weights())
    trainer.restart(shipped)
    examples = no_examples()
    Teacher(decoder, heads).fill(examples, 1024)
    held_out = examples.runs(768, 1024, 1)
    before = trainer.are_right(None, examples, 0, held_out).float().mean()

    for _ in range(100):
        runs = examples.runs(0, 768, 1)
        trainer.accumulate_gradient(examples, 0, runs[:, torch.randint(runs.shape[1], (64,))])
        assert trainer.step()

    after = trainer.are_right(None, examples, 0, held_out).float().mean()
    assert after > before + 0.2
    # The returned weights are those that were measured, and earlier copies have not changed.
    given = trainer.weights()
    assert trainer.are_right(given, examples, 0, held_out).float().mean() == pytest.approx(
        float(after), abs=0.02
    )
    assert trainer.are_right(shipped, examples, 0, held_out).float().mean() == before
    trainer.restart(shipped)
    assert trainer.are_right(None, examples, 0, held_out).float().mean() == before


@torch.inference_mode()
def test_a_gradient_of_no_numbers_changes_nothing(decoder, heads):
    trainer = trainer_of(decoder, heads)
    examples = no_examples()
    Teacher(decoder, heads).fill(examples, 64)
    before = trainer.weights()
    trainer.accumulate_gradient(examples, 0, examples.runs(0, 64, 1))
    trainer._gradients[0][0, 0] = float("nan")

    assert not trainer.step()
    assert torch.equal(trainer.weights().project, before.project)
