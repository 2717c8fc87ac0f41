"""Which tokens a sequence has, and how often its output has each: what penalties are made of.

Arrays that grow by what is new, so that a step neither walks a prompt again nor makes a Python
object of any token in it. Knows token ids only.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

_SPARE = 64  # least room for more tokens


class TokenCounts:
    """Different tokens of one sequence in the order they came, each with its count."""

    def __init__(self, prompt: Sequence[int], output: Sequence[int]) -> None:
        ids = list(dict.fromkeys(prompt))
        self._places = {token_id: place for place, token_id in enumerate(ids)}
        self._ids = np.array(ids, dtype=np.int64)
        self._counts = np.zeros(len(ids), dtype=np.int64)
        self.append(output)

    def append(self, token_ids: Sequence[int]) -> None:
        """Count more of the output."""
        for token_id in token_ids:
            place = self._places.setdefault(token_id, len(self._places))
            if place == len(self._ids):
                room = max(_SPARE, place)
                self._ids = np.concatenate((self._ids, np.zeros(room, dtype=np.int64)))
                self._counts = np.concatenate((self._counts, np.zeros(room, dtype=np.int64)))
            self._ids[place] = token_id
            self._counts[place] += 1

    def behind(self, drafts: Sequence[int]) -> tuple[Ids, Ids]:
        """Token ids [U] and their counts in the output, 0 for those of the prompt alone, with the
        drafts as if they were output. Not to be written to; valid until the next `append`.
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
