"""Forecasts on recorded texts agree with what is known of perfect and of useless heads."""

import pytest
import torch
from tiny_model import load_tiny, write_tiny_llama

from engine.model.exit_head import Calibration
from engine.model.ops.torch_ops import TorchOps
from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from training.costs import PartCosts, measure_costs
from training.replay import MOST_DRAFTS, Opinions, Replay
from training.states import HiddenStates

pytestmark = pytest.mark.torch

LENGTHS = (40, 2, 30)
SURE = Calibration(edges=(0.5, 1.0), greedy=(0.05, 0.95), sampled=(0.05, 0.95))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return load_tiny(write_tiny_llama(tmp_path_factory.mktemp("tiny")), TorchOps("cpu"))


@pytest.fixture(scope="module")
def states():
    size = sum(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    is_first = torch.zeros(size, dtype=torch.bool)
    is_first[torch.tensor([0, 40, 42])] = True
    return HiddenStates(
        exit=torch.zeros(size, 4),
        last=torch.zeros(size, 4),
        log_normalizer=torch.zeros(size),
        target=torch.randint(0, 97, (size,), generator=generator).int().masked_fill(is_first, -1),
        is_first=is_first,
    )


def opinions(states, *, right: bool, confidence: float) -> Opinions:
    """Return the opinions of a head that is always right, or always wrong."""
    shifts = range(1, MOST_DRAFTS + 2)
    ids = torch.stack([torch.roll(states.target.long(), -shift) for shift in shifts], 1)
    return Opinions(ids if right else (ids + 1) % 97, torch.full(ids.shape, confidence))


def cost(layer: float = 0.1, num_layers: int = 10) -> CostModel:
    """Return costs by which a layer takes as long for one token as for many."""
    parts = [CostCurve([1], [layer]), CostCurve([1], [layer * (num_layers - 1)])]
    return CostModel(parts, [CostCurve([1], [0.01])], CostCurve([1], [0.05]))


def test_perfect_heads_are_worth_what_arithmetic_says(decoder, states):
    replay = Replay(decoder.spec, states)
    assert replay.num_tokens == 39 + 1 + 29
    sure = {1: opinions(states, right=True, confidence=0.99)}
    forecast = replay.forecast(sure, {1: SURE}, cost(), 1.05)
    steps = 39 / 7 + 1 + 29 / 7  # each commits six drafts and the target's own token
    bound = replay.num_tokens * 1.05 / (steps * (7 * 0.11 + 0.95))
    assert 1.5 < forecast.speedup <= bound * 1.05
    assert forecast.exit_layers == [1]


def test_useless_heads_are_hardly_worse_than_none(decoder, states):
    replay = Replay(decoder.spec, states)
    useless = {1: opinions(states, right=False, confidence=0.2)}
    assert 0.85 < replay.forecast(useless, {1: SURE}, cost(), 1.05).speedup <= 1.0
    fixed = replay.forecast(useless, {1: SURE}, cost(), 1.05, threshold=0.1)
    assert fixed.speedup < 0.7, "a threshold that is always passed wastes every draft"


def test_dear_exits_bring_less_than_cheap_ones(decoder, states):
    replay = Replay(decoder.spec, states)
    sure = {1: opinions(states, right=True, confidence=0.99)}
    cheap = replay.forecast(sure, {1: SURE}, cost(0.1), 1.05)
    dear = replay.forecast(sure, {1: SURE}, cost(0.5, num_layers=2), 1.05)
    assert cheap.speedup > dear.speedup


def test_agreement_counts_runs_within_their_text(states):
    right = opinions(states, right=True, confidence=0.9)
    assert right.agreement(states) == [1.0] * (MOST_DRAFTS + 1)
    wrong = opinions(states, right=False, confidence=0.9)
    assert wrong.agreement(states)[0] == 0.0
    assert right.calibration(states).greedy[-4] > 0.9


def test_costs_of_any_segment_follow_from_two(decoder):
    costs = PartCosts(6, {1: 2.0, 4: 3.0}, {1: 1.0, 4: 1.5}, {1: 0.5, 4: 0.6}, {50: {1: 0.1}})
    model = costs.model([2, 3], 50)
    assert [model.segment(index, 1) for index in range(3)] == pytest.approx([3.0, 2.0, 4.0])
    assert model.segment(2, 4) == pytest.approx(6.0)
    assert costs.model([], 50).plain(1) == pytest.approx(7.5)
    measured = measure_costs(decoder, [20, 90], refinement_size=32)
    assert measured.heads.keys() == {20, 90}
    assert measured.model([2], 20).plain(1) > 0
