from pathlib import Path

import pytest
from tiny_model import write_tiny_heads, write_tiny_llama

from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from training.step_costs import HeadSizes, Observations, StepCosts

pytestmark = pytest.mark.torch

SIZES = HeadSizes([2, 3], ["small", "big"])
WEIGHTS = {"weights": "abc", "numbers": "float32"}


def measured(scale: float = 1.0, sizes: HeadSizes = SIZES) -> StepCosts:
    flat = [CostCurve([1], [1.0]) for _ in range(4 + len(sizes.names))]
    cost = CostModel(flat[:3], flat[4:], flat[3])
    seen = Observations(cost)
    seconds = {cost.segments[-1]: 8.5, cost.last_logits: 1.0}
    seconds |= {curve: (i + 1) / 10 for i, curve in enumerate(cost.heads)}
    for curve, each in seconds.items():
        for disturbance in (9.0, 1.0, 1.0, 2.0, 1.0, 5.0, 1.0):
            cost.observe(curve, 1, scale * each * disturbance)
            cost.observe(curve, 4, 2 * scale * each * disturbance)
        cost.observe(curve, 2, 0.01)
    return StepCosts.of(WEIGHTS, seen, sizes, 20)


def test_segments_have_their_share_of_the_layers_wherever_exits_are() -> None:
    model = measured().model(HeadSizes([5], ["big"]), 20)
    assert model.segment(0, 1) == pytest.approx(2.5)
    assert model.segment(1, 4) == pytest.approx(15.0)
    assert model.head(0, 1) == pytest.approx(0.2)
    assert model.plain(1) == pytest.approx(11.0)
    assert measured().model(HeadSizes(), 20).plain(4) == pytest.approx(22.0)


def test_what_is_kept_is_what_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    measured().write(file)
    assert StepCosts.read(file) == measured()
    assert "a look (small) 100.00" in str(StepCosts.read(file))


def test_an_exit_that_was_hardly_seen_costs_what_its_worker_believes() -> None:
    cost = CostModel(
        [CostCurve([1], [1.0])] * 3, [CostCurve([1], [0.5])] * 2, CostCurve([1], [1.0])
    )
    seen = Observations(cost)
    unseen = StepCosts.of(WEIGHTS, seen, SIZES, 20)
    assert unseen.layers[1] == pytest.approx(20 / 17), "on a GPU, where parts cannot be seen"
    cost.observe(cost.segments[-1], 1, 1.0)
    with pytest.raises(ValueError, match="not seen often enough"):
        StepCosts.of(WEIGHTS, seen, SIZES, 20)
    for curve in (cost.segments[-1], cost.last_logits):
        for _ in range(9):
            cost.observe(curve, 1, 1.0)
    assert StepCosts.of(WEIGHTS, seen, SIZES, 20).heads["big"][1] == pytest.approx(0.5)


def test_looks_measured_later_on_a_busier_machine_fit_in() -> None:
    later = measured(3.0, HeadSizes([3], ["huge"]))
    assert not measured().knows(HeadSizes([2], ["huge"]))
    both = measured().with_heads_of(later)
    assert both.knows(HeadSizes([2, 3], ["huge", "big"]))
    assert both.heads["huge"][4] == pytest.approx(0.2)
    assert both.layers == measured().layers


def test_costs_of_something_else_are_refused(tmp_path: Path) -> None:
    measured().check(WEIGHTS)
    with pytest.raises(ValueError, match="measured with other numbers: float32, not bfloat16"):
        measured().check(WEIGHTS | {"numbers": "bfloat16"})
    file = tmp_path / "costs.json"
    for text in ("", "{}", '{"measured_of": {}, "layers": {}, "logits": {}, "heads": {}}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="--costs"):
            StepCosts.read(file)


def test_sizes_are_those_of_the_heads(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "tiny")
    linear = write_tiny_heads(model, tmp_path / "linear", [1, 3])
    refined = write_tiny_heads(model, tmp_path / "refined", [2], refinement_size=8)
    assert HeadSizes.of(linear) == HeadSizes([1, 3], ["40 tokens, linear"] * 2)
    assert HeadSizes.of(refined) == HeadSizes([2], ["40 tokens, refinement of 8"])
    assert HeadSizes.of(None) == HeadSizes()
    with pytest.raises(ValueError, match="no exit heads"):
        HeadSizes.of(tmp_path)
