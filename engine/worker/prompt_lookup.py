"""Prompt look-up: finds where a sequence's newest tokens occurred before and what followed them.

Text repeats its prompt and itself, so what followed last time is a guess that needs no layer. Knows
token ids only; the policy decides what a guess is worth. An index belongs to one sequence, follows
its tokens as they are appended, and can be rebuilt from them at any time.

Source: prompt look-up decoding (Saxena 2023); the longest match decides, as in SuffixDecoding
(arXiv 2411.04975).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

_MOST_PLACES = 8  # places considered for a key, the latest ones
_LONGEST_MATCH = 16  # tokens compared before a place; a longer match says nothing more
_PIECE = 4096  # tokens indexed at once, which takes some 5 ms
_FIRST_RECENT = 0.3  # `PromptLookup.recent` of a new sequence
_MEMORY = 0.8  # decay of `PromptLookup.recent` per token


@dataclass(frozen=True, slots=True)
class Continuation:
    """The tokens that follow at the best earlier place."""

    token_ids: list[int]
    match: int  # number of tokens before that place that equal the newest ones
    agreement: float  # share of the equally good places that go on with the same token


class PromptLookup:
    """An index of the places after every token, and every pair of tokens, of one sequence.

    Attributes:
        recent: Share of the latest tokens that a look-up had right.
    """

    def __init__(self, token_ids: list[int]) -> None:
        """
        Args:
            token_ids: The sequence's own list; tokens appended to it are indexed with the next
                search.
        """
        self.recent = _FIRST_RECENT
        self._tokens = token_ids
        self._num_indexed = 0
        # Last token, or last two -> the positions of the tokens that followed, oldest first.
        self._places: dict[int | tuple[int, int], list[int]] = {}

    def find(
        self, drafts: Sequence[int], length: int, noise: Callable[[int], float] | None = None
    ) -> Continuation | None:
        """Return what may follow the known tokens and `drafts`; None if the newest token is new.

        Args:
            length: Most tokens to return.
            noise: Sampling noise of a token id at the next position, under which the first token
                found is the likeliest; None: there is no noise.
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
        """Learn whether the first token of a continuation was the next one."""
        self.recent = _MEMORY * self.recent + (1.0 - _MEMORY) * was_right

    def _candidates(self, newest: Sequence[int]) -> list[int]:
        """Return places after the newest two tokens, else after the newest one; latest first."""
        places = self._places.get((newest[-2], newest[-1])) if len(newest) > 1 else None
        places = places or self._places.get(newest[-1]) or []
        return places[: -_MOST_PLACES - 1 : -1]

    def _index(self) -> None:
        """Index appended tokens, a long prompt in pieces because all rows of the step wait for it.

        The position after the newest token is no place yet: it has no token.
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
    """Return how many tokens before `place` equal the newest ones."""
    count, most = 1, min(place, _LONGEST_MATCH)
    while count < most and tokens[place - 1 - count] == newest[-1 - count]:
        count += 1
    return count


def _looped(token_ids: list[int], length: int) -> list[int]:
    """Return the tokens, repeated until there are `length`, as a loop in the text would go on."""
    found = list(token_ids)
    for index in range(length - len(found)):
        found.append(found[index])
    return found
