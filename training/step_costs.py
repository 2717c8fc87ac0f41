"""The costs of a step's parts, held fixed, so that heads, vocabularies and policies are compared by
the same costs in one run or in many.

All layers together have one cost curve, and a segment costs its share of the layers, so that heads
at any layers are compared on the same model. A look, the evaluation of an exit head on some tokens,
costs what the head's sizes say, whatever its layer.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from engine.errors import HeadsMismatch
from engine.model.exit_head import RefinementWeights, read_tensors
from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from engine.worker.cost_profile import plausible

Points = Mapping[int, float]  # tokens -> seconds

_ENOUGH = 6  # fewer observations of a number of tokens are not used
_QUANTILE = 8  # a part's cost is the time that one in eight observations is below


@dataclass(frozen=True, slots=True)
class HeadSizes:
    """The exits of some heads, and for each the sizes that decide what a look at it costs.

    A name stands for the sizes, such as `8192 tokens, refinement of 384`.
    """

    exit_layers: Sequence[int] = ()
    names: Sequence[str] = ()

    @classmethod
    def of(cls, directory: Path | None) -> "HeadSizes":
        """Read the sizes of the heads in a directory; None: there are no heads.

        Raises:
            ValueError: if the directory has no heads.
        """
        if directory is None:
            return cls()
        try:
            tensors = read_tensors(directory)
            layers = sorted(json.loads((directory / "heads.json").read_text())["exit_layers"])
        except (HeadsMismatch, OSError) as error:
            raise ValueError(f"no exit heads in {directory}: {error}") from None
        weights = (RefinementWeights.of(tensors, layer) for layer in layers)
        sizes = ("linear" if w is None else f"refinement of {len(w.gate)}" for w in weights)
        return cls(layers, [f"{len(tensors['vocabulary'])} tokens, {size}" for size in sizes])


class Observations:
    """The times that a worker's parts of steps were seen to take, the host's work included.

    Other work on the machine makes a part take longer, never shorter: a low quantile of many times
    is what it takes by itself.
    """

    def __init__(self, cost: CostModel) -> None:
        """
        Args:
            cost: A worker's cost model, which is watched from now on.
        """
        self.cost = cost
        self._seconds: dict[tuple[CostCurve, int], list[float]] = defaultdict(list)
        cost.on_observation = self.add

    def add(self, curve: CostCurve, num_tokens: int, seconds: float) -> None:
        """Add the time of one call of a part of the watched model."""
        self._seconds[curve, num_tokens].append(seconds)

    def __contains__(self, curve: CostCurve) -> bool:
        return any(part is curve for part, _ in self._seconds)

    def points(self, curve: CostCurve) -> Points:
        """Return a part's cost at the numbers of tokens that were seen often enough."""
        often = {
            count: sorted(seconds)[len(seconds) // _QUANTILE]
            for (part, count), seconds in self._seconds.items()
            if part is curve and len(seconds) >= _ENOUGH
        }
        return plausible({count: often[count] for count in sorted(often)})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCosts:
    """The cost curves of a step's parts, by their points."""

    measured_of: Mapping[str, str]  # the weights, and the numeric type, device and backend
    layers: Points  # all layers together
    logits: Points  # the final logits and all that follows until the step's result
    heads: Mapping[str, Points] = field(default_factory=dict)  # a look, by the head's sizes

    @classmethod
    def of(
        cls, measured_of: Mapping[str, str], seen: Observations, sizes: HeadSizes, num_layers: int
    ) -> "StepCosts":
        """Derive the costs from what was seen of a worker with heads of these sizes.

        Raises:
            ValueError: if too little was seen.
        """
        cost = seen.cost
        # On a GPU the parts of a step cannot be timed one by one; the start-up profile, which
        # includes the host's work, takes their place.
        last, logits = (
            seen.points(curve) if curve in seen else dict(curve.points)
            for curve in (cost.segments[-1], cost.last_logits)
        )
        below = num_layers - max(sizes.exit_layers, default=0)  # layers of the last segment
        if 1 not in last or 1 not in logits:
            raise ValueError("plain steps of one token were not seen often enough to have a cost")
        heads: dict[str, Points] = {}
        for name, curve in zip(sizes.names, cost.heads, strict=True):
            looks = seen.points(curve)
            if 1 in looks:
                heads[name] = looks
            else:  # where an exit always drafts, those after it are never evaluated
                heads.setdefault(name, dict(curve.points))
        return cls(
            measured_of=dict(measured_of),
            layers={count: seconds * num_layers / below for count, seconds in last.items()},
            logits=logits,
            heads=heads,
        )

    @classmethod
    def read(cls, file: Path) -> "StepCosts":
        """Read what `write` has written.

        Raises:
            ValueError: if the file holds no costs.
        """
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
            return cls(
                measured_of={str(name): str(fact) for name, fact in raw["measured_of"].items()},
                layers=_points(raw["layers"]),
                logits=_points(raw["logits"]),
                heads={str(name): _points(each) for name, each in raw["heads"].items()},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"--costs {file}: no costs of a step: {error!r}") from None

    def write(self, file: Path) -> None:
        """Write the costs to a file, for further runs."""
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def check(self, found: Mapping[str, str]) -> None:
        """Refuse costs that were measured with something else.

        Args:
            found: Facts of the worker that is to be compared, as in `measured_of`.

        Raises:
            ValueError: if the weights, the numeric type, the device or the backend differ.
        """
        for name, fact in found.items():
            if self.measured_of.get(name) != fact:
                raise ValueError(
                    f"--costs: measured with other {name}: {self.measured_of.get(name)}, not {fact}"
                )

    def knows(self, sizes: HeadSizes) -> bool:
        """Whether the costs of looks at such heads are known."""
        return all(name in self.heads for name in sizes.names)

    def with_heads_of(self, other: "StepCosts") -> "StepCosts":
        """Return these costs with the looks of another measurement added.

        Those are scaled by the ratio of the two plain steps, since the machine may have been busier
        during one measurement.
        """
        load = self._plain_s / other._plain_s
        fresh = {
            name: {count: seconds * load for count, seconds in points.items()}
            for name, points in other.heads.items()
        }
        return replace(self, heads=fresh | dict(self.heads))

    def model(self, sizes: HeadSizes, num_layers: int) -> CostModel:
        """Return a new cost model for heads of these sizes, for a policy or a clock.

        Models share nothing, so that what one learns does not change another.
        """
        bounds = [0, *sizes.exit_layers, num_layers]
        shares = [(end - start) / num_layers for start, end in pairwise(bounds)]
        return CostModel(
            [_curve(self.layers, share) for share in shares],
            [_curve(self.heads[name]) for name in sizes.names],
            _curve(self.logits),
        )

    def __str__(self) -> str:
        """Return the costs of few tokens, for people to read."""
        steps = ", ".join(
            f"{count}: {1e3 * (seconds + self.logits[count]):.1f}"
            for count, seconds in self.layers.items()
            if count <= 32 and count in self.logits
        )
        looks = "; ".join(
            f"a look ({name}) {1e3 * points[1]:.2f}" for name, points in self.heads.items()
        )
        return f"ms of a step by tokens: {steps}" + (f"; {looks}" if looks else "")

    @property
    def _plain_s(self) -> float:
        return self.layers[1] + self.logits[1]


def _points(raw: Mapping[str, float]) -> Points:
    points = {int(count): float(seconds) for count, seconds in raw.items()}
    if 1 not in points:
        raise ValueError("a single token has no cost")
    return points


def _curve(points: Points, share: float = 1.0) -> CostCurve:
    counts = sorted(points)
    return CostCurve(counts, [points[count] * share for count in counts])
