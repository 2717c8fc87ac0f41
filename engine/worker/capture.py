"""The interface for capturing graphs, and the numbers of tokens that graphs are captured for.

Code that needs graphs is given a `Capture`: that of `cuda_graph` on a GPU; elsewhere, one that
replays by calling again.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

CAPTURED_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)  # tokens of a call that has a graph

Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]


def token_counts_for(most: int) -> Sequence[int]:
    """Return the numbers of tokens to capture if steps that only decode have at most `most`."""
    enough = fitting(CAPTURED_COUNTS, most) or CAPTURED_COUNTS[-1]
    return [count for count in CAPTURED_COUNTS if count <= enough]


def fitting(sizes: Sequence[int], wanted: int) -> int | None:
    """Return the smallest of ascending sizes that is at least `wanted`; None if there is none."""
    place = bisect_left(sizes, wanted)
    return sizes[place] if place < len(sizes) else None
