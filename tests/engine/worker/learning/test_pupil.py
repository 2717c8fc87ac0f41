"""What does better on positions it has not studied serves; what does worse is dropped."""

import pytest
import torch
from learning import Teacher, faint, first_head, no_examples, weights_of
from tiny_model import load_tiny, random_heads, write_tiny_llama

from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHead, HeadWeights
from engine.model.ops.torch_ops import TorchOps
from engine.worker.learning.examples import Examples
from engine.worker.learning.pupil import Change, Pupil
from engine.worker.learning.trainee import Lens

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return load_tiny(write_tiny_llama(tmp_path_factory.mktemp("tiny")), TorchOps("cpu"))


class Class:
    """A pupil, its teacher and its examples."""

    def __init__(self, decoder: Decoder) -> None:
        self.heads = random_heads(decoder, [2], 40)
        self.head: ExitHead = first_head(self.heads)
        lens = Lens.of(self.head, decoder.lm_head_rows(self.heads.token_ids))
        self.shipped: HeadWeights = faint(weights_of(self.head))
        self.head.adopt(self.shipped)
        self.pupil = Pupil(self.head, 0, lens, self.shipped)
        self.decoder = decoder
        self.examples: Examples = no_examples()
        Teacher(decoder, self.heads).fill(self.examples, 1024)

    @torch.inference_mode()
    def study(self, num_updates: int) -> None:
        for _ in range(num_updates):
            runs = self.examples.runs(0, 768, 1)
            self.pupil.study(self.examples, runs[:, torch.randint(runs.shape[1], (64,))])
            self.pupil.step()

    @torch.inference_mode()
    def trial(self, first: int = 768, end: int = 1024) -> Change:
        self.pupil.sit(self.examples, self.examples.runs(first, end, 1))
        return self.pupil.judge()


@pytest.fixture
def school_class(decoder: Decoder) -> Class:
    return Class(decoder)


def serves(school_class: Class, weights: HeadWeights) -> bool:
    """Whether these are what the packed head computes with."""
    return torch.equal(school_class.head.project.weight, weights.project.float())


def test_better_weights_serve(school_class):
    school_class.study(100)

    assert school_class.trial() is Change.ADOPTED

    pupil = school_class.pupil
    assert pupil.version == 1
    assert pupil.agreement.candidate > pupil.agreement.serving
    assert serves(school_class, pupil.serving)
    assert not serves(school_class, school_class.shipped)


def test_weights_that_do_no_better_do_not_serve(school_class):
    assert school_class.trial() is Change.NONE
    assert school_class.pupil.version == 0
    assert serves(school_class, school_class.shipped)


def test_once_the_shipped_weights_do_better_they_serve_again(school_class):
    school_class.study(100)
    school_class.trial()
    other = Class(school_class.decoder)
    # The traffic is now what the shipped weights are made for.
    shipped = school_class.pupil.serving
    back = Pupil(other.head, 0, school_class.pupil._trainee._lens, shipped)
    back.resume(other.shipped, 3)
    other.pupil = back

    assert other.trial() is Change.DROPPED
    assert back.version == 0
    assert serves(other, shipped)


def test_weights_whose_acceptance_has_fallen_are_dropped(school_class):
    pupil = school_class.pupil
    for index in range(300):
        pupil.watch.observe(was_right=index % 4 != 0)
    school_class.study(100)
    school_class.trial()
    assert pupil.check_acceptance() is Change.NONE
    for _ in range(200):
        pupil.watch.observe(was_right=False)

    assert pupil.check_acceptance() is Change.DROPPED

    assert pupil.version == 0
    assert serves(school_class, school_class.shipped)
    assert pupil.check_acceptance() is Change.NONE


def test_a_candidate_that_gets_worse_begins_again(school_class):
    school_class.study(100)
    school_class.trial()
    pupil = school_class.pupil
    for part in pupil._trainee._parts():
        part.zero_()

    assert school_class.trial() is Change.NONE
    assert torch.equal(pupil._trainee.weights().project, pupil.serving.project)


def test_a_trial_of_nothing_changes_nothing(school_class):
    assert school_class.pupil.judge() is Change.NONE
