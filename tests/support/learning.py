"""Made-up training examples whose last states are a fixed function of the states at the exit."""

import pytest
import torch
from tiny_model import HIDDEN, VOCAB

from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHead, ExitHeads, HeadWeights, RefinementWeights
from engine.worker.learning import budget, head_versions, online_trainer, recorder
from engine.worker.learning.examples import Examples, Verified
from engine.worker.learning.unit_rms import unit_rms

COLUMNS = 40


def weights_of(head: ExitHead) -> HeadWeights:
    """Return the trainable weights of a head on the `TorchOps` backend."""
    return HeadWeights(
        project=head.project.weight.clone(),
        project_previous=head.project_previous.weight.clone(),
        other=head.other.weight[0].clone(),
    )


def refinement_of(head: ExitHead) -> RefinementWeights | None:
    """Return the weights of a head's refinement, or None if it has none."""
    if head.refinement is None:
        return None
    gate, up = head.refinement.gate_up.weight.clone().chunk(2)
    return RefinementWeights(
        norm=head.refinement.norm, gate=gate, up=up, down=head.refinement.down.weight.clone()
    )


def faint(weights: HeadWeights) -> HeadWeights:
    """Scale weights down to almost nothing, so that a few updates change what the head says."""
    return HeadWeights(
        project=weights.project * 0.02,
        project_previous=weights.project_previous * 0.02,
        other=weights.other * 0.02,
    )


def first_head(heads: ExitHeads) -> ExitHead:
    """Return the head at the first exit."""
    head = heads.heads[0]
    assert isinstance(head, ExitHead)
    return head


class Teacher:
    """A last layer that multiplies the state at the exit by a fixed matrix."""

    def __init__(self, decoder: Decoder, heads: ExitHeads, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._turn = torch.randn(HIDDEN, HIDDEN, generator=self._generator) * HIDDEN**-0.5
        self._decoder = decoder
        self._token_ids = heads.token_ids.long()

    @torch.inference_mode()
    def positions(self, count: int) -> Verified:
        """Make consecutive positions, all of whose tokens are in the reduced vocabulary."""
        exits = torch.randn(1, count, HIDDEN, generator=self._generator)
        last = exits[0] @ self._turn.T
        logits = self._decoder.logits(last)[:, self._token_ids]
        assert logits.shape[1] == COLUMNS < VOCAB
        probs = torch.cat((logits.softmax(-1), torch.zeros(count, 1)), dim=1)
        return Verified(
            exits=unit_rms(exits),
            last=unit_rms(last),
            probs=probs,
            targets=logits.argmax(-1).tolist(),
        )

    def fill(self, examples: Examples, count: int) -> None:
        """Add `count` positions of one sequence, rounded down to a multiple of 16."""
        before = None
        for _ in range(count // 16):
            serial = examples.num_written
            examples.add(self.positions(16), [before, *range(serial, serial + 15)])
            before = serial + 15


def no_examples() -> Examples:
    """Return an empty ring of examples for one exit of the tiny model."""
    return Examples(1, HIDDEN, COLUMNS + 1, torch.device("cpu"))


def change_heads_at_every_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make trials frequent, and let the candidate serve after each, whatever it shows."""
    hurried = {
        "_FIRST": 8,
        "_LEAST_HELD_OUT": 8,
        "_UPDATES_PER_TRIAL": 1,
        "_MOST_UPDATES": 2,
        "_PER_UPDATE": 16,
    }
    for name, value in hurried.items():
        monkeypatch.setattr(online_trainer, name, value)
    monkeypatch.setattr(recorder, "_BATCH", 4)
    monkeypatch.setattr(budget, "_RESERVE_S", 0.0)
    monkeypatch.setattr(head_versions, "_SURE", 100.0)
    monkeypatch.setattr(head_versions, "_difference", lambda *_: (1.0, 0.5))
