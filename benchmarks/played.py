"""What trying early exits costs where they cannot pay: `python -m benchmarks.played`.

Scheduler, worker and policy run on the imagined device, whose parts take what they took
SmolLM2-135M on an H100 (RESULTS.md). Unlike in `benchmarks.host`, the host takes a given time as
well, so nothing depends on the machine that plays, and every run gives the same figures. No draft
is ever right. Needs torch only.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.host import WAYS, Step, WatchedWorker, make_engine, requests
from benchmarks.imagined_device import DeviceClock
from engine.offline import OfflineEngine
from engine.worker.cost_curve import CostCurve

# Seconds of a pass over so many tokens, logits included, and of looking at an exit for so many
# rows. A look at one row, and all beyond 64, are assumed.
_PASS_S = {1: 0.79e-3, 4: 0.84e-3, 16: 0.844e-3, 64: 1.355e-3, 128: 2.3e-3}
_LOOK_S = {1: 1.2e-3, 64: 4.4e-3, 128: 8.8e-3}
_HOST_S = (
    0.45e-3  # of the host between two steps, which a device feels if nothing was launched ahead
)
_NUM_LAYERS = 30
_LOGITS_SHARE = 0.1  # of a pass
_ROUNDS = 6  # the first of which does not count, as in `benchmarks.gpu.small`


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """`Costs` that were measured as whole passes and looks."""

    passes: CostCurve
    looks: CostCurve
    look_share: float  # how much of the measured time a look takes

    def layers(self, num_layers: int, num_tokens: int) -> float:
        """See `Costs.layers`."""
        share = (1.0 - _LOGITS_SHARE) * num_layers / _NUM_LAYERS
        return share * self.passes(num_tokens)

    def logits(self, num_tokens: int) -> float:
        """See `Costs.logits`."""
        return _LOGITS_SHARE * self.passes(num_tokens)

    def head(self, num_tokens: int) -> float:
        """See `Costs.head`."""
        return self.look_share * self.looks(num_tokens)

    def sample(self, num_tokens: int) -> float:
        """See `Costs.sample`: a part of the pass."""
        return 0.0

    def expect(self, num_tokens: int) -> float:
        """See `Costs.expect`: a part of the look."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What several rounds brought."""

    speed: float  # tokens per second over those without early exits
    looks: float  # share of steps that looked at an exit
    late: float  # share of other steps whose pass was not launched ahead

    @classmethod
    def of(cls, plain_rate: float, rate: float, steps: Sequence[Step]) -> "Outcome":
        """Return the outcome of these steps with early exits."""
        looked = [step for step in steps if step.inside.num_reads > 1]
        late = [s for s in steps if s.inside.num_reads == 1 and s.between.felt_s + s.inside.felt_s]
        return cls(rate / plain_rate, len(looked) / len(steps), len(late) / len(steps))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=64, help="streams (%(default)s)")
    parser.add_argument("--steps", type=int, default=128, help="of a round (%(default)s)")
    args = parser.parse_args()
    print(f"{args.rows} streams: tokens per second, early exits / plain, and shares of steps:")
    print(f"{'a look takes':>14}{'speed':>10}{'looks':>10}{'late':>10}")
    for look_share in (1.0, 0.5, 1 / 3, 0.1):
        outcome = play(args.rows, args.steps, look_share)
        cells = f"{outcome.speed:>10.4f}{outcome.looks:>10.4f}{outcome.late:>10.4f}"
        print(f"{_LOOK_S[64] * look_share * 1e3:>11.2f} ms{cells}", flush=True)


def play(rows: int, num_steps: int, look_share: float) -> Outcome:
    """Play rounds with and without early exits in turns, as a server sees them one after the other.

    Args:
        look_share: How much of the measured time a look takes.
    """
    costs = MeasuredCosts(CostCurve.of(_PASS_S), CostCurve.of(_LOOK_S), look_share)
    clock = DeviceClock(host=lambda: 0.0)
    with tempfile.TemporaryDirectory() as folder:
        way = WAYS["no draft pays"]
        engine, worker = make_engine(way, Path(folder), clock, costs, spent_s=_HOST_S)
        plain = [_round(engine, worker, rows, num_steps, early_exit=False) for _ in range(2)][1:]
        early = [_round(engine, worker, rows, num_steps, early_exit=True) for _ in range(_ROUNDS)]
    steps = [step for each in early[1:] for step in each]
    return Outcome.of(_rate(plain), _rate(early[1:]), steps)


def _round(
    engine: OfflineEngine, worker: WatchedWorker, rows: int, num_steps: int, *, early_exit: bool
) -> list[Step]:
    """Decode one batch; return its steps of all rows."""
    worker.steps = []
    engine.generate(requests(rows, 0.0, num_steps, early_exit=early_exit))
    return [step for step in worker.steps if len(step.rows) == rows]


def _rate(rounds: Sequence[Sequence[Step]]) -> float:
    """Return the tokens per second of rounds, each from the end of its first step on."""
    num_tokens = sum(
        len(row.token_ids) for each in rounds for step in each[1:] for row in step.rows
    )
    return num_tokens / sum(each[-1].ended_at - each[0].ended_at for each in rounds)


if __name__ == "__main__":
    main()
