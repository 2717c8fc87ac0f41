"""Greedy choice: with candidates in order of their worth, only how many of them to take is open.

Knows numbers only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

_NEGLIGIBLE = 0.01  # a survival below it is not worth the arithmetic


def best_count(scores: Iterable[float], floor: float) -> int:
    """Return how many of the first candidates to take; 0 if no number of them beats taking none.

    Args:
        scores: Of taking the first one, the first two, and so on.
        floor: The score of taking none.
    """
    best, count = floor, 0
    for number, score in enumerate(scores, start=1):
        if score > best:
            best, count = score, number
    return count


def best_prefixes(
    runs: Sequence[Sequence[float]],
    expected: float,
    seconds_with: Callable[[int], float],
    longest_s: float,
) -> list[int]:
    """Return how many drafts of every run to take, so that tokens per second rise most.

    Survivals fall along a run, so that the best drafts of all runs are prefixes of them.

    Args:
        runs: The survivals of each run's drafts.
        expected: Tokens of the step without any of them.
        seconds_with: The step's seconds with so many of them in all.
        longest_s: What the step may take at most.
    """
    if not any(runs):
        return [0] * len(runs)
    ranked = sorted(
        ((survival, index) for index, run in enumerate(runs) for survival in run),
        key=lambda entry: entry[0],
        reverse=True,
    )

    def rates() -> Iterator[float]:
        total = expected
        for count, (survival, _) in enumerate(ranked, start=1):
            total += survival
            seconds = seconds_with(count)
            if survival < _NEGLIGIBLE or seconds > longest_s:
                return
            yield total / seconds

    counts = [0] * len(runs)
    for _, index in ranked[: best_count(rates(), expected / seconds_with(0))]:
        counts[index] += 1
    return counts
