"""Weights that do better on held-out positions serve; weights that do worse are dropped."""

from itertools import cycle

import pytest
import torch
from learning import Teacher, faint, first_head, no_examples, weights_of
from tiny_model import random_heads

from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHead, HeadWeights
from engine.worker.learning import head_versions
from engine.worker.learning.candidate_trainer import ReducedLmHead
from engine.worker.learning.examples import Examples
from engine.worker.learning.head_versions import Change, HeadVersions

pytestmark = pytest.mark.torch


class Training:
    """A head's versions, and 1,024 examples to train and try them on."""

    def __init__(self, decoder: Decoder) -> None:
        self.heads = random_heads(decoder, [2], 40)
        self.head: ExitHead = first_head(self.heads)
        lm_head = ReducedLmHead.of(self.head, decoder.lm_head_rows(self.heads.token_ids))
        self.shipped: HeadWeights = faint(weights_of(self.head))
        self.head.adopt(self.shipped)
        self.versions = HeadVersions(self.head, 0, lm_head, self.shipped)
        self.decoder = decoder
        self.examples: Examples = no_examples()
        Teacher(decoder, self.heads).fill(self.examples, 1024)

    @torch.inference_mode()
    def update(self, num_updates: int) -> None:
        for _ in range(num_updates):
            runs = self.examples.runs(0, 768, 1)
            self.versions.accumulate_gradient(
                self.examples, runs[:, torch.randint(runs.shape[1], (64,))]
            )
            self.versions.step()

    @torch.inference_mode()
    def trial(self, first: int = 768, end: int = 1024) -> Change:
        self.versions.evaluate(self.examples, self.examples.runs(first, end, 1))
        return self.versions.judge()


@pytest.fixture
def training(decoder: Decoder) -> Training:
    return Training(decoder)


def serves(training: Training, weights: HeadWeights) -> bool:
    """Whether the packed head computes with these weights."""
    return torch.equal(training.head.project.weight, weights.project.float())


def trains_on(training: Training, weights: HeadWeights) -> bool:
    """Whether the weights in training have not changed since they were these."""
    return torch.equal(training.versions._trainer.weights().project, weights.project.half())


def test_better_weights_serve(training):
    training.update(100)

    assert training.trial() is Change.ADOPTED

    versions = training.versions
    assert versions.version == 1
    assert versions.agreement.candidate > versions.agreement.serving
    assert serves(training, versions.serving)
    assert not serves(training, training.shipped)


def test_weights_that_do_no_better_do_not_serve(training):
    assert training.trial() is Change.NONE
    assert training.versions.version == 0
    assert serves(training, training.shipped)


def test_once_the_shipped_weights_do_better_they_serve_again(training):
    training.update(100)
    training.trial()
    other = Training(training.decoder)
    # The traffic is now what the shipped weights are made for.
    shipped = training.versions.serving
    back = HeadVersions(other.head, 0, training.versions._trainer._lm_head, shipped)
    back.resume(other.shipped, 3)
    other.versions = back

    assert other.trial() is Change.DROPPED
    assert back.version == 0
    assert serves(other, shipped)
    assert trains_on(other, shipped)


def test_weights_whose_acceptance_has_fallen_are_dropped(training):
    versions = training.versions
    for index in range(300):
        versions.watch.observe(was_right=index % 4 != 0)
    training.update(100)
    training.trial()
    assert versions.check_acceptance() is Change.NONE
    for _ in range(200):
        versions.watch.observe(was_right=False)

    assert versions.check_acceptance() is Change.DROPPED

    assert versions.version == 0
    assert serves(training, training.shipped)
    for was_right in (True, False):
        assert versions.check_acceptance() is Change.NONE
        versions.watch.restart()
        for _ in range(200):
            versions.watch.observe(was_right=was_right)
    assert versions.check_acceptance() is Change.NONE, "nothing was served before"


@pytest.mark.parametrize(
    ("gain", "error", "change"),
    [
        (0.003, 0.001, Change.ADOPTED),
        (0.003, 0.004, Change.NONE),  # it may be chance
        (0.0015, 0.001, Change.NONE),  # it is not worth packing the weights anew
        (-0.003, 0.002, Change.NONE),  # this may be chance too
    ],
)
def test_only_a_gain_that_is_no_chance_and_worth_it_is_adopted(
    training, monkeypatch, gain, error, change
):
    monkeypatch.setattr(
        head_versions,
        "_difference",
        lambda left, right: (0.0, 0.0) if left is right else (gain, error),
    )
    training.update(1)
    candidate = training.versions._trainer.weights()

    assert training.trial() is change
    assert trains_on(training, candidate), "it is trained further"


def test_what_falls_gives_way_to_what_served_before_and_then_to_the_shipped_weights(
    training, monkeypatch
):
    versions = training.versions
    differences = cycle([(1.0, 0.1), (-1.0, 0.1)])  # of the candidate, and of the shipped weights
    monkeypatch.setattr(head_versions, "_difference", lambda *_: next(differences))

    def fall() -> Change:
        for rate in (True, False):
            versions.watch.restart()
            for _ in range(200):
                versions.watch.observe(was_right=rate)
        return versions.check_acceptance()

    versions.resume(training.shipped, 3)
    learned = []
    for version in (4, 5):
        training.update(1)
        assert training.trial() is Change.ADOPTED
        assert versions.version == version
        learned.append(versions.serving)

    assert fall() is Change.DROPPED
    assert versions.version == 4
    assert serves(training, learned[0])
    assert fall() is Change.DROPPED
    assert versions.version == 0
    assert serves(training, training.shipped)


def test_training_goes_on_from_what_an_earlier_worker_learned(training):
    training.update(5)
    learned = training.versions._trainer.weights()
    other = Training(training.decoder)
    other.versions.resume(learned, 3)

    assert serves(other, learned)
    assert trains_on(other, learned)


def test_a_candidate_whose_gradient_is_no_number_begins_again(training, caplog):
    training.update(5)
    assert not trains_on(training, training.shipped)
    runs = training.examples.runs(0, 64, 1)
    with torch.inference_mode():
        training.versions.accumulate_gradient(training.examples, runs)
        training.versions._trainer._gradients[0][0, 0] = float("nan")
        training.versions.step()

    assert "begins again" in caplog.text
    assert trains_on(training, training.shipped)


def test_a_candidate_that_gets_worse_begins_again(training):
    training.update(100)
    training.trial()
    versions = training.versions
    for part in versions._trainer._parts():
        part.zero_()

    assert training.trial() is Change.NONE
    assert torch.equal(versions._trainer.weights().project, versions.serving.project)


def test_a_trial_of_nothing_changes_nothing(training):
    assert training.versions.judge() is Change.NONE
