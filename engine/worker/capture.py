"""What graphs are captured of: a call, for so many tokens.

Who captures is given to whoever needs graphs: `cuda_graph` on a GPU; calling again does elsewhere.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

TOKEN_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)

Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]


def token_counts_for(most: int) -> Sequence[int]:
    """Numbers of tokens to capture where steps that only decode have at most so many."""
    enough = fitting(TOKEN_COUNTS, most) or TOKEN_COUNTS[-1]
    return [count for count in TOKEN_COUNTS if count <= enough]


def fitting(sizes: Sequence[int], wanted: int) -> int | None:
    """The smallest of ascending sizes that holds what is wanted; None: none does."""
    place = bisect_left(sizes, wanted)
    return sizes[place] if place < len(sizes) else None
