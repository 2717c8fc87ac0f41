"""The result of a search for exits, as a JSON file."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.model.exit_head import Calibration
from training.json_file import read_json, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCurve:
    """The figures of a cheap head at one layer."""

    layer: int
    agreement: list[float]  # share of right tokens, by number of drafts before
    calibration: Calibration
    speedup: float  # forecast with this as the only exit


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A choice of exits that was compared with others."""

    exit_layers: list[int]
    forecast: float  # speed-up with cheap heads and the policy, without prompt look-up
    threshold: float  # the best fixed threshold
    threshold_forecast: float  # speed-up with it
    measured_alone: float  # speed-up of trained heads, greedy, without prompt look-up
    measured_by_temperature: dict[str, float]  # speed-ups with prompt look-up
    measured: float  # the mean of `measured_by_temperature`, which decides


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The exits and the vocabulary that a search has found, and all that it compared."""

    exit_layers: list[int]
    vocabulary_size: int
    curves: list[LayerCurve]
    vocabularies: dict[int, tuple[float, float]]  # size -> coverage, forecast at the best exit
    candidates: list[Candidate]
    rule: dict[str, str]  # how candidates were compared, for people

    def facts(self) -> dict[str, Any]:
        """Return what `heads.json` says of the search."""
        return {
            **self.rule,
            "candidates": [asdict(candidate) for candidate in self.candidates],
            "vocabularies": {
                str(size): {"coverage": coverage, "forecast": forecast}
                for size, (coverage, forecast) in self.vocabularies.items()
            },
        }

    def write(self, path: Path) -> None:
        """Write the result to a file, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "SearchResult | None":
        """Read what `write` has written; None if there is no such file."""
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
