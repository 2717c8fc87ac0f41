"""The distinct tokens of a sequence and their counts in its output, as penalties need them.

They are kept in arrays that grow with new tokens, so that a step neither walks the prompt again nor
makes Python objects of its tokens. Knows token ids only.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

_SPARE = 64  # fewest entries by which the arrays grow


class TokenCounts:
    """The distinct tokens of one sequence in order of appearance, with their counts."""

    def __init__(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        ids = list(dict.fromkeys(prompt))
        self._places = {token_id: place for place, token_id in enumerate(ids)}
        self._ids = np.array(ids, dtype=np.int64)
        self._counts = np.zeros(len(ids), dtype=np.int64)
        self.append(output)

    def append(self, token_ids: Sequence[int]) -> None:
        """Count further output tokens."""
        for token_id in token_ids:
            place = self._places.setdefault(token_id, len(self._places))
            if place == len(self._ids):
                room = max(_SPARE, place)
                self._ids = np.concatenate((self._ids, np.zeros(room, dtype=np.int64)))
                self._counts = np.concatenate((self._counts, np.zeros(room, dtype=np.int64)))
            self._ids[place] = token_id
            self._counts[place] += 1

    def with_drafts(self, drafts: Sequence[int]) -> tuple[Ids, Ids]:
        """Return the distinct token ids [U] and their counts [U] in the output and the drafts.

        Tokens of the prompt alone have a count of 0. The arrays are read-only and valid until the
        next `append`.
        """
        size = len(self._places)
        ids, counts = self._ids[:size], self._counts[:size]
        if not drafts:
            return ids, counts
        unseen = [i for i in dict.fromkeys(drafts) if i not in self._places]
        places = {token_id: size + number for number, token_id in enumerate(unseen)}
        ids = np.concatenate((ids, np.array(unseen, dtype=np.int64)))
        counts = np.concatenate((counts, np.zeros(len(unseen), dtype=np.int64)))
        for token_id in drafts:
            counts[places[token_id] if token_id in places else self._places[token_id]] += 1
        return ids, counts
