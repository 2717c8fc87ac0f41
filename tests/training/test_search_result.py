"""The stored results of a search."""

from pathlib import Path

import pytest

from engine.model.exit_head import Calibration
from training.search_result import Candidate, LayerCurve, SearchResult

pytestmark = pytest.mark.torch


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    calibration = Calibration(edges=[0.5, 1.0], greedy=[0.1, 0.9], sampled=[0.1, 0.8])
    result = SearchResult(
        exit_layers=[3, 8],
        vocabulary_size=4096,
        curves=[LayerCurve(layer=1, agreement=[0.2, 0.3], calibration=calibration, speedup=1.1)],
        vocabularies={2048: (0.8, 1.1), 4096: (0.9, 1.2)},
        candidates=[
            Candidate(
                exit_layers=[3, 8],
                forecast=1.2,
                threshold=0.5,
                threshold_forecast=1.1,
                measured_alone=1.2,
                measured_by_temperature={"0": 1.5, "0.8": 1.3},
                measured=1.4,
            )
        ],
        rule={"clock": "modelled"},
    )
    result.write(tmp_path / "result.json")
    assert SearchResult.read(tmp_path / "result.json") == result
    assert result.facts()["clock"] == "modelled"
    assert result.facts()["vocabularies"]["4096"] == {"coverage": 0.9, "forecast": 1.2}
