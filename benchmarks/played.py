"""What trying early exits costs where they hardly pay: `python -m benchmarks.played`.

Scheduler, worker and policy run on the imagined device, whose parts take what they took
SmolLM2-135M, or a model of 8B, on a GPU (RESULTS.md). Unlike in `benchmarks.host`, the host takes a
given time as well, so nothing depends on the machine that plays, and every run gives the same
figures. Needs torch only.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.host import Step, WatchedWorker, Way, make_engine, requests
from benchmarks.imagined_device import DeviceClock
from engine.offline import OfflineEngine
from engine.worker.cost_curve import CostCurve

_NUM_LAYERS = 30
_LOGITS_SHARE = 0.1  # of a pass
_ROUNDS = 6  # the first of which does not count, as in `benchmarks.gpu.small`


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What was measured on a GPU, in seconds by number of tokens or rows.

    Figures beyond 64 are assumed.
    """

    pass_s: Mapping[int, float]  # logits included
    look_s: Mapping[int, float]  # at an exit
    host_s: float  # between two steps, which a device feels if nothing was launched ahead


_NUM_STREAMS = (1, 2, 4, 8, 16, 32, 64)
_RIGHT = (0.0, 0.3, 0.5, 0.7, 0.9)
_DEARER = (1.0, 2.0, 4.0)

CARDS = {
    "H100": Card(
        pass_s={1: 0.79e-3, 4: 0.84e-3, 16: 0.844e-3, 64: 1.355e-3, 128: 2.3e-3},
        look_s={1: 1.2e-3, 64: 4.4e-3, 128: 8.8e-3},  # of one row: assumed
        host_s=0.45e-3,
    ),
    "H200": Card(
        pass_s={1: 0.815e-3, 4: 0.832e-3, 16: 0.844e-3, 64: 1.008e-3, 128: 2.0e-3},
        look_s={1: 0.239e-3, 16: 0.243e-3, 64: 1.409e-3, 128: 2.8e-3},
        host_s=0.46e-3,
    ),
    "H200-8B": Card(
        pass_s={1: 4.476e-3, 4: 4.566e-3, 16: 5.01e-3, 64: 8.48e-3, 128: 15e-3},
        look_s={1: 0.5e-3, 16: 0.6e-3, 64: 1.4e-3, 128: 2.8e-3},  # assumed
        host_s=0.46e-3,
    ),
}


@dataclass(slots=True)
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
    parser.add_argument("--card", choices=CARDS, default="H100", help="(%(default)s)")
    parser.add_argument("--rows", type=int, default=64, help="streams (%(default)s)")
    parser.add_argument("--steps", type=int, default=128, help="of a round (%(default)s)")
    parser.add_argument("--right", type=float, default=0.0, help="share of drafts (%(default)s)")
    parser.add_argument(
        "--dearer",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="by which looks take longer than the start measures (%(default)s)",
    )
    parser.add_argument(
        "--grid", action="store_true", help="play many cases; only --card and --steps count"
    )
    args = parser.parse_args()
    card = CARDS[args.card]
    if args.grid:
        _print_grid(card, args.steps)
        return
    print(f"{args.rows} streams: tokens per second, early exits / plain, and shares of steps:")
    print(f"{'a look takes':>14}{'speed':>10}{'looks':>10}{'late':>10}")
    for look_share in (1.0, 0.5, 1 / 3, 0.1):
        outcome = play(
            card,
            args.rows,
            args.steps,
            look_share=look_share,
            right=args.right,
            dearer=args.dearer,
        )
        cells = f"{outcome.speed:>10.4f}{outcome.looks:>10.4f}{outcome.late:>10.4f}"
        look_s = CostCurve.of(card.look_s)(args.rows) * look_share * args.dearer
        print(f"{look_s * 1e3:>11.2f} ms{cells}", flush=True)


def _print_grid(card: Card, num_steps: int) -> None:
    """Print the speed by share of right drafts, price of looks, and streams."""
    print("tokens per second, early exits / plain, by streams:")
    print(f"{'right':>7}{'dearer':>8}" + "".join(f"{rows:>8}" for rows in _NUM_STREAMS))
    for right, dearer in product(_RIGHT, _DEARER):
        print(f"{right:>7.1f}{dearer:>8.1f}", end="")
        for rows in _NUM_STREAMS:
            outcome = play(card, rows, num_steps, right=right, dearer=dearer)
            print(f"{outcome.speed:>8.3f}", end="", flush=True)
        print()


def play(
    card: Card,
    rows: int,
    num_steps: int = 128,
    *,
    look_share: float = 1.0,
    right: float = 0.0,
    dearer: float = 1.0,
) -> Outcome:
    """Play rounds with and without early exits in turns, as a server sees them one after the other.

    Args:
        look_share: How much of the measured time a look takes.
        right: Share of tokens after which the head agrees with the model.
        dearer: Factor by which looks take longer than they did when the start measured them.
    """
    costs = MeasuredCosts(CostCurve.of(card.pass_s), CostCurve.of(card.look_s), look_share)
    clock = DeviceClock(host=lambda: 0.0)
    with tempfile.TemporaryDirectory() as folder:
        way = Way("played", agreement=right)
        engine, worker = make_engine(way, Path(folder), clock, costs, spent_s=card.host_s)
        costs.look_share *= dearer
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
