"""Greedy choice: how many of the candidates, ranked by worth, to take. Knows numbers only."""

from collections.abc import Callable, Iterable, Iterator, Sequence

_NEGLIGIBLE = 0.01  # survival below which a draft is not considered


def best_count(scores: Iterable[float], floor: float) -> int:
    """Return how many of the first candidates to take; 0 if no number of them beats taking none.

    Args:
        scores: The scores of taking the first one, the first two, and so on.
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
    """Return how many drafts of every run to take for the most tokens per second.

    Survivals fall along a run, so the best drafts of all runs are prefixes of the runs.

    Args:
        runs: The survivals of each run's drafts.
        expected: Expected tokens of the step without any of the drafts.
        seconds_with: The step's seconds, given the number of drafts taken in all.
        longest_s: Most seconds that the step may take.
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
