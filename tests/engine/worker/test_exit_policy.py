"""The policy drafts while expected tokens per second rise, and stops when it does not pay."""

import pytest

from engine.model.exit_head import Calibration
from engine.worker.cost_model import CostCurve, CostModel
from engine.worker.exit_policy import Candidate, ExitPolicy, StepEstimate

pytestmark = pytest.mark.torch

EDGES = (0.5, 1.0)


def policy(low: float = 0.05, high: float = 0.9) -> ExitPolicy:
    """Segment 0 and its head cost a tenth of a pass."""
    flat = [CostCurve([1, 64], [0.08, 0.10]), CostCurve([1, 64], [0.7, 1.4])]
    cost = CostModel(flat, [CostCurve([1, 64], [0.02, 0.03])], CostCurve([1, 64], [0.2, 0.4]))
    rates = Calibration(edges=EDGES, greedy=(low, high), sampled=(low, high))
    return ExitPolicy([3], {3: rates}, cost)


def candidate(
    confidence: float, survival: float = 1.0, threshold: float | None = None
) -> Candidate:
    return Candidate(
        row=0, confidence=confidence, is_greedy=True, threshold=threshold, survival=survival
    )


def estimate(rows: int = 1) -> StepEstimate:
    return StepEstimate(num_tokens=rows, expected_tokens=float(rows), seconds=0.1)


def test_drafts_when_sure_and_not_when_unsure() -> None:
    assert policy().select(0, [candidate(0.9)], estimate())
    assert not policy().select(0, [candidate(0.2)], estimate())


def test_a_run_unlikely_to_survive_ends() -> None:
    step = StepEstimate(num_tokens=4, expected_tokens=2.5, seconds=0.4)
    assert not policy().select(0, [candidate(0.9, survival=0.1)], step)


def test_fixed_threshold_overrides_costs() -> None:
    assert policy(high=0.0).select(0, [candidate(0.6, threshold=0.5)], estimate())
    assert not policy().select(0, [candidate(0.6, threshold=0.7)], estimate())


def test_in_a_batch_only_the_likely_rows_draft() -> None:
    chosen = policy().select(0, [candidate(0.9), candidate(0.2), candidate(0.95)], estimate(3))
    assert [c.confidence for c in chosen] == [0.9, 0.95]


def test_switches_off_when_drafting_does_not_pay_and_comes_back() -> None:
    p = policy()
    for _ in range(40):
        p.observe_step(1, 1, 1.3)  # one token for more than a plain step's cost
        if not p.is_drafting:
            break
    assert not p.is_drafting
    assert "off" in p.reason
    assert not p.select(0, [candidate(0.99)], estimate())
    for _ in range(32):
        p.observe_step(1, 1, 1.0)
    assert p.is_drafting
    for _ in range(100):
        p.observe_step(1, 3, 1.3)
    assert p.is_drafting
    assert p.speedup == pytest.approx(3 * 0.98 / 1.3)


def test_pauses_grow_while_it_never_pays() -> None:
    p = policy()
    drafting = 0
    for _ in range(2000):
        drafting += p.is_drafting
        p.observe_step(1, 1, 1.02)
    assert drafting < 200


def test_calibration_follows_outcomes() -> None:
    p = policy(high=0.9)
    for _ in range(200):
        p.observe_draft(0, 0.9, is_greedy=True, accepted=False)
    assert not p.select(0, [candidate(0.9)], estimate())
    assert p.select(0, [Candidate(0, 0.9, False, None, 1.0)], estimate()), (
        "sampled rows learn apart"
    )
