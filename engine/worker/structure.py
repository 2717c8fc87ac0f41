"""Where a sequence stands in its grammar, and which tokens may come next; drafts included.

A matcher stands at the committed output. For a position behind drafts they are fed to it, the mask
is read, and they are taken back, so a rejected draft leaves no trace. A draft that the grammar does
not allow ends the walk: nothing behind it can be accepted, so its mask does not matter.

All rows wait while one is looked after. A grammar that can read the same text in many ways takes
longer with every token, without limit; so each has an allowance of CPU time, and ends beyond it.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Tokens of JSON schemas take 0.2 ms, hardly one takes 4 (`python -m benchmarks.masks`).
_S_PER_TOKEN = 0.01
_MOST_BEHIND_S = 2.0  # that a sequence may take more, all in all

_TOO_SLOW = "the structure can be read in too many ways: to follow it takes too long"


class StructureState:
    """One sequence's matcher.

    Attributes:
        error: Why the structure can no longer be followed; nothing is allowed then.
        is_too_slow: Whether it is because that takes too long.
        vocab_size: V.
    """

    def __init__(
        self,
        matcher: Any,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        output: Sequence[int],
        *,
        stop_token_ids: Sequence[int] = (),
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """Args:
        matcher: an `xgrammar.GrammarMatcher` at the start of its grammar.
        eos_token_ids: ids that end a structure.
        output: tokens that are known already: replayed.
        stop_token_ids: further ids that are put off while something else is allowed.
        clock: in seconds of this thread's own time, lest a busy machine counts.
        """
        self.error = None if matcher else "the structure cannot be used here"
        self.is_too_slow = False
        self.vocab_size = vocab_size
        self._clock = clock
        self._behind_s = 0.0
        self._matcher = matcher
        self._eos_ids = torch.tensor(list(eos_token_ids), dtype=torch.int64)
        self._stop_ids = torch.tensor([*eos_token_ids, *stop_token_ids], dtype=torch.int64)
        self._words = torch.zeros((1, -(-vocab_size // 32)), dtype=torch.int32)
        self._masks: dict[tuple[int, ...], Tensor | None] = {}
        self.append(output)

    def append(self, token_ids: Sequence[int]) -> None:
        """Commit tokens; those behind the grammar's end do not count."""
        self._masks.clear()
        for token_id in token_ids:
            if self.error is not None or self._matcher.is_terminated():
                return
            started = self._clock()
            if not self._matcher.accept_token(token_id):
                self.error = "the output has left its structure"
                return
            self._charge(self._clock() - started, 1)

    def allowed(
        self, drafts: Sequence[int], *, puts_off_end: bool, listed: Tensor | None = None
    ) -> Tensor | None:
        """[V] bool: tokens that may follow the drafts; None where it does not matter.

        Args:
            puts_off_end: leave out the stop tokens while there is anything else.
            listed: [V] bool, the tokens that are wanted; where none of them can go on, a structure
                that is complete ends.
        """
        key = tuple(drafts)
        if key not in self._masks:
            started = self._clock()
            self._masks[key] = self._after(key)
            self._charge(self._clock() - started, 1 + len(key))
        mask = self._masks[key]
        if mask is None:
            return None
        wanted = mask if listed is None else mask & listed
        if puts_off_end:
            others = wanted.clone()
            others[self._stop_ids] = False
            wanted = others if others.any() else wanted
        if listed is not None and not wanted.any():
            wanted[self._eos_ids] = mask[self._eos_ids]
        return wanted

    def _charge(self, seconds: float, num_tokens: int) -> None:
        self._behind_s = max(0.0, self._behind_s + seconds - num_tokens * _S_PER_TOKEN)
        if self._behind_s > _MOST_BEHIND_S:
            self.error, self.is_too_slow = _TOO_SLOW, True

    def _after(self, drafts: tuple[int, ...]) -> Tensor | None:
        if self.error is not None:
            return torch.zeros(self.vocab_size, dtype=torch.bool)
        matcher, fed = self._matcher, 0
        try:
            for token_id in drafts:
                if matcher.is_terminated() or not matcher.accept_token(token_id):
                    return None
                fed += 1
            if matcher.is_terminated():
                return None
            matcher.fill_next_token_bitmask(self._words)
            octets = self._words[0].numpy().view(np.uint8)
            bits = np.unpackbits(octets, count=self.vocab_size, bitorder="little")
            return torch.from_numpy(bits.view(np.bool_))
        finally:
            if fed:
                matcher.rollback(fed)
