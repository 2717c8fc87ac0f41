"""What a search for exits has found, as a file."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.model.exit_head import Calibration
from training.json_file import read_json, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCurve:
    """What a cheap head at a layer achieves."""

    layer: int
    agreement: list[float]  # by drafts before
    calibration: Calibration
    speedup: float  # forecast, with it as the only exit


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A choice of exits that was compared with others."""

    exit_layers: list[int]
    forecast: float  # of cheap heads, without look-ups
    threshold: float  # the best fixed one
    threshold_forecast: float
    measured_alone: float  # of heads trained a little, greedy, without look-ups
    measured_by_temperature: dict[str, float]  # the same with look-ups
    measured: float  # the mean of those, which decides


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What was found."""

    exit_layers: list[int]
    vocabulary_size: int
    curves: list[LayerCurve]
    vocabularies: dict[int, tuple[float, float]]  # size -> coverage, forecast at the best exit
    candidates: list[Candidate]
    rule: dict[str, str]  # how they were compared

    def facts(self) -> dict[str, Any]:
        """What `heads.json` says of it."""
        return {
            **self.rule,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "vocabularies": {
                str(size): {"coverage": coverage, "forecast": forecast}
                for size, (coverage, forecast) in self.vocabularies.items()
            },
        }

    def write(self, path: Path) -> None:
        """Keep it, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "SearchResult | None":
        """What `write` has written; None: nothing yet."""
        raw = read_json(path)
        if raw is None:
            return None
        raw["curves"] = [
            LayerCurve(**curve | {"calibration": Calibration(**curve["calibration"])})
            for curve in raw["curves"]
        ]
        raw["vocabularies"] = {int(size): tuple(v) for size, v in raw["vocabularies"].items()}
        raw["candidates"] = [Candidate(**candidate) for candidate in raw["candidates"]]
        return cls(**raw)
