"""How many of the best candidates are taken."""

import itertools
import math
from random import Random

import pytest

from engine.worker.greedy import best_count, best_prefixes


@pytest.mark.parametrize(
    ("scores", "count"),
    [
        ([], 0),
        ([1.0], 0),
        ([1.1], 1),
        ([0.5, 1.2], 2),
        ([1.2, 1.1, 1.3, 0.9], 3),
        ([1.2, 1.2], 1),
        ([-math.inf, 1.5], 2),
    ],
)
def test_the_fewest_with_the_best_score_above_the_floor(scores: list[float], count: int) -> None:
    assert best_count(scores, 1.0) == count


def falling(random: Random) -> list[float]:
    """Return the survivals of a run of up to four drafts."""
    factors = [random.uniform(0.2, 1.0) for _ in range(random.randrange(5))]
    return list(itertools.accumulate(factors, lambda survival, factor: survival * factor))


@pytest.mark.parametrize("seed", range(20))
def test_prefixes_are_as_good_as_the_best_of_all(seed: int) -> None:
    random = Random(seed)
    runs = [falling(random) for _ in range(3)]

    def rate(counts: tuple[int, ...]) -> float:
        survivals = sum(sum(run[:count]) for run, count in zip(runs, counts, strict=True))
        return (3.0 + survivals) / seconds_with(sum(counts))

    def seconds_with(count: int) -> float:
        return 1.0 + 0.1 * count

    chosen = best_prefixes(runs, 3.0, seconds_with, math.inf)
    every = itertools.product(*(range(len(run) + 1) for run in runs))
    assert rate(tuple(chosen)) == pytest.approx(max(map(rate, every)))
    few = best_prefixes(runs, 3.0, seconds_with, longest_s=1.25)
    assert sum(few) == min(sum(chosen), 2), "no longer than allowed"


def test_what_is_next_to_impossible_is_not_taken_even_if_it_costs_nothing() -> None:
    assert best_prefixes([[0.9, 0.02, 0.009]], 1.0, lambda _: 1.0, math.inf) == [2]
