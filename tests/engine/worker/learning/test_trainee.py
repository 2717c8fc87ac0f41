"""The gradient is that of the loss that heads are trained with, and steps along it teach."""

from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from learning import Teacher, faint, first_head, no_examples, refinement_of, weights_of
from tiny_model import load_tiny, random_heads, write_tiny_llama

from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHead, ExitHeads
from engine.model.ops.torch_ops import TorchOps
from engine.worker.learning.trainee import Lens, Trainee
from training.head_module import HeadModule

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_tiny(write_tiny_llama(tmp_path_factory.mktemp("tiny")), TorchOps("cpu"))


@pytest.fixture(params=[0, 32], ids=["linear", "refined"])
def heads(request: pytest.FixtureRequest, decoder: Decoder) -> ExitHeads:
    return random_heads(decoder, [2], 40, request.param)


def trainee_of(decoder: Decoder, heads: ExitHeads) -> Trainee:
    head = first_head(heads)
    lens = Lens.of(head, decoder.lm_head_rows(heads.token_ids))
    return Trainee(head, lens, weights_of(head), refinement_of(head))


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
    trainee = trainee_of(decoder, heads)
    module = module_of(decoder, heads, head)
    examples = no_examples()
    Teacher(decoder, heads).fill(examples, 64)
    runs = examples.runs(0, 64, depth)

    with torch.inference_mode():
        loss = trainee.study(examples, 0, runs)
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
        trainee._gradients, ("project", "project_previous", "other"), strict=True
    ):
        theirs = getattr(module, name).grad
        assert torch.allclose(mine, theirs, rtol=1e-2, atol=1e-3 * float(theirs.abs().max())), name


@pytest.mark.parametrize("heads", [0], indirect=True, ids=["linear"])  # none is random behind it
@torch.inference_mode()
def test_studying_makes_it_right(decoder, heads):
    trainee = trainee_of(decoder, heads)
    shipped = faint(trainee.weights())
    trainee.restart(shipped)
    examples = no_examples()
    Teacher(decoder, heads).fill(examples, 1024)
    held_out = examples.runs(768, 1024, 1)
    before = trainee.are_right(None, examples, 0, held_out).float().mean()

    for _ in range(100):
        runs = examples.runs(0, 768, 1)
        trainee.study(examples, 0, runs[:, torch.randint(runs.shape[1], (64,))])
        assert trainee.step()

    after = trainee.are_right(None, examples, 0, held_out).float().mean()
    assert after > before + 0.2
    # The weights given out are what was measured, and those given before have not moved.
    given = trainee.weights()
    assert trainee.are_right(given, examples, 0, held_out).float().mean() == pytest.approx(
        float(after), abs=0.02
    )
    assert trainee.are_right(shipped, examples, 0, held_out).float().mean() == before
    trainee.restart(shipped)
    assert trainee.are_right(None, examples, 0, held_out).float().mean() == before


@torch.inference_mode()
def test_a_gradient_of_no_numbers_changes_nothing(decoder, heads):
    trainee = trainee_of(decoder, heads)
    examples = no_examples()
    Teacher(decoder, heads).fill(examples, 64)
    before = trainee.weights()
    trainee.study(examples, 0, examples.runs(0, 64, 1))
    trainee._gradients[0][0, 0] = float("nan")

    assert not trainee.step()
    assert torch.equal(trainee.weights().project, before.project)
