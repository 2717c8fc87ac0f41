"""Look-up drafts: where a sequence's newest tokens stood before, and what followed them there.

Text repeats its prompt and itself, so what followed last time is a guess that costs no layer. Knows
token ids only; what a guess is worth is the policy's affair. Belongs to one sequence, follows its
tokens as they are appended, and can be built anew from them at any time.

Source: prompt look-up decoding (Saxena 2023); the longest match decides, as in SuffixDecoding
(arXiv 2411.04975).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

_MOST_PLACES = 8  # the latest ones, of each key
_LONGEST_MATCH = 16  # beyond it, longer says nothing more
_PIECE = 4096  # tokens taken in at once: some 5 ms
_FIRST_RECENT, _MEMORY = 0.3, 0.8  # of `recent`: at the start, and what it keeps per token


@dataclass(frozen=True, slots=True)
class Continuation:
    """What followed the best earlier place."""

    token_ids: list[int]
    match: int  # tokens before that place that equal the newest ones
    agreement: float  # share of the equally good places that go on with the same token


class Lookup:
    """Places of every token, and of every pair, of one sequence.

    Attributes:
        recent: Share of the latest tokens that a look-up had right.
    """

    def __init__(self, token_ids: list[int]) -> None:
        """Args:
        token_ids: The sequence's own list; whatever is appended to it is found from then on.
        """
        self.recent = _FIRST_RECENT
        self._tokens = token_ids
        self._num_indexed = 0
        # Last token, or last two -> where the next one stood, oldest first.
        self._places: dict[int | tuple[int, int], list[int]] = {}

    def find(
        self, drafts: Sequence[int], length: int, noise: Callable[[int], float] | None = None
    ) -> Continuation | None:
        """What may follow the known tokens and `drafts`; None if the newest token is new.

        Args:
            length: Most tokens of the continuation.
            noise: The sampling noise of a token that comes next; None: none. The first token found
                is then the likeliest under that noise.
        """
        self._index()
        tokens = self._tokens
        newest = [*tokens[-_LONGEST_MATCH:], *drafts]
        places = self._candidates(newest)
        if not places or length < 1:
            return None
        matches = [_match(tokens, place, newest) for place in places]
        longest = max(matches)
        best = [p for p, match in zip(places, matches, strict=True) if match == longest]
        counts = Counter(tokens[place] for place in best)  # the latest place first
        first = next(iter(counts))
        if len(counts) > 1:
            first = max(counts, key=lambda t: log(counts[t]) + (noise(t) if noise else 0.0))
        chosen = next(place for place in best if tokens[place] == first)
        token_ids = [*tokens[chosen : chosen + length], *drafts][:length]
        return Continuation(_looped(token_ids, length), longest, counts[first] / len(best))

    def judge(self, *, was_right: bool) -> None:
        """Learn whether the first token found was the next one."""
        self.recent = _MEMORY * self.recent + (1.0 - _MEMORY) * was_right

    def _candidates(self, newest: Sequence[int]) -> list[int]:
        """Places after the newest two tokens, else after the newest one; latest first."""
        places = self._places.get((newest[-2], newest[-1])) if len(newest) > 1 else None
        places = places or self._places.get(newest[-1]) or []
        return places[: -_MOST_PLACES - 1 : -1]

    def _index(self) -> None:
        """Take in what was appended, a long prompt in pieces: every row of the step waits for it. A
        place has a token, so the newest token's is not one yet.
        """
        tokens = self._tokens
        end = min(len(tokens), self._num_indexed + _PIECE)
        for place in range(max(1, self._num_indexed), end):
            self._places.setdefault(tokens[place - 1], []).append(place)
            if place > 1:
                pair = (tokens[place - 2], tokens[place - 1])
                self._places.setdefault(pair, []).append(place)
        self._num_indexed = end


def _match(tokens: Sequence[int], place: int, newest: Sequence[int]) -> int:
    """How many tokens before `place` equal the newest ones."""
    count, most = 1, min(place, _LONGEST_MATCH)
    while count < most and tokens[place - 1 - count] == newest[-1 - count]:
        count += 1
    return count


def _looped(token_ids: list[int], length: int) -> list[int]:
    """The tokens, repeated until there are `length`: a loop goes on."""
    found = list(token_ids)
    for index in range(length - len(found)):
        found.append(found[index])
    return found
