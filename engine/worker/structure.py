"""The state of a sequence in its grammar: which tokens may come next, also after drafts.

For a position after drafts, the drafts are fed to the matcher and the mask is read. They stay fed,
because the next position asked for is usually the following one. Tokens that no longer belong are
rolled back, so a rejected draft leaves no trace. After a draft that the grammar does not allow
nothing can be accepted, so masks there do not matter.

All rows wait while one row's grammar advances. An ambiguous grammar can take longer with every
token, without limit, so each sequence has an allowance of CPU time and fails beyond it. That is why
masks are filled one after the other: with xgrammar's threads for many matchers one could not tell
whose time was used. Nor do these threads gain anything for fewer than 64 masks on two cores: most
masks take 2 to 60 us.
"""

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np

from engine.worker.token_bits import TokenBits, all_tokens, num_words, token_bits

# CPU seconds allowed per token. Tokens of JSON schemas take 0.1 ms, hardly one takes 4 ms
# (`python -m benchmarks.masks`).
_S_PER_TOKEN = 0.01
_MOST_BEHIND_S = 2.0  # CPU seconds by which a sequence may exceed what its tokens are allowed

_TOO_SLOW = "the structure can be read in too many ways: to follow it takes too long"


class StructureState:
    """The matcher of one sequence.

    Attributes:
        error: Why the structure can no longer be followed; then no token is allowed.
        is_too_slow: Whether the reason is that following it takes too long.
        vocab_size: Size V of the vocabulary.
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
        """
        Args:
            matcher: An `xgrammar.GrammarMatcher` at the start of its grammar; None: the structure
                cannot be used.
            eos_token_ids: Ids that end a structure.
            output: Known output tokens, which are replayed.
            stop_token_ids: Further ids that end the sequence.
            clock: In seconds of this thread's CPU time, so that a busy machine does not count.
        """
        self.error = None if matcher else "the structure cannot be used here"
        self.is_too_slow = False
        self.vocab_size = vocab_size
        self._clock = clock
        self._behind_s = 0.0
        self._matcher = matcher
        self._fed: list[int] = []  # drafts that the matcher has read after the output
        self._eos_ids = tuple(eos_token_ids)
        self._stop_ids = (*eos_token_ids, *stop_token_ids)
        self._masks: dict[tuple[int, ...], TokenBits | None] = {}
        self.append(output)

    def append(self, token_ids: Sequence[int]) -> None:
        """Commit tokens; those after the grammar's end are ignored."""
        self._masks.clear()
        if self.error is not None:
            return
        num_known = self._take_back(token_ids)
        self._fed.clear()
        for token_id in token_ids[num_known:]:
            if self.error is not None or self._matcher.is_terminated():
                return
            started = self._clock()
            if not self._matcher.accept_token(token_id):
                self.error = "the output has left its structure"
                return
            self._charge(self._clock() - started, 1)

    def allowed(
        self, drafts: Sequence[int], *, puts_off_end: bool, listed: TokenBits | None = None
    ) -> TokenBits | None:
        """Return the tokens that may follow the drafts; None: it does not matter. Read-only.

        Args:
            puts_off_end: Whether to leave out tokens that end the sequence while any other is
                allowed.
            listed: The tokens that the request allows. If none of them can go on, a complete
                structure ends.
        """
        key = tuple(drafts)
        if key not in self._masks:
            started, num_fed = self._clock(), len(self._fed)
            self._masks[key] = self._after(key)
            self._charge(self._clock() - started, 1 + max(0, len(self._fed) - num_fed))
        mask = self._masks[key]
        if mask is None:
            return None
        wanted = mask if listed is None else mask & listed
        if puts_off_end:
            others = wanted & ~self._stops
            wanted = others if others.any() else wanted
        if listed is not None and not wanted.any():
            wanted = mask & self._ends
        return wanted

    @cached_property
    def _ends(self) -> TokenBits:
        return token_bits(self._eos_ids, self.vocab_size)

    @cached_property
    def _stops(self) -> TokenBits:
        return token_bits(self._stop_ids, self.vocab_size)

    @cached_property
    def _vocabulary(self) -> TokenBits:
        return all_tokens(self.vocab_size)

    def _charge(self, seconds: float, num_tokens: int) -> None:
        self._behind_s = max(0.0, self._behind_s + seconds - num_tokens * _S_PER_TOKEN)
        if self._behind_s > _MOST_BEHIND_S:
            self.error, self.is_too_slow = _TOO_SLOW, True

    def _after(self, drafts: tuple[int, ...]) -> TokenBits | None:
        if self.error is not None:
            return np.zeros(num_words(self.vocab_size), dtype=np.int32)
        for token_id in drafts[self._take_back(drafts) :]:
            if self._matcher.is_terminated() or not self._matcher.accept_token(token_id):
                return None
            self._fed.append(token_id)
        if self._matcher.is_terminated():
            return None
        words = np.empty((1, num_words(self.vocab_size)), dtype=np.int32)
        self._matcher.fill_next_token_bitmask(words)
        return words[0] & self._vocabulary

    def _take_back(self, wanted: Sequence[int]) -> int:
        """Roll back the fed drafts after their common prefix with `wanted`; return its length."""
        pairs = zip(self._fed, wanted, strict=False)
        num_kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if num_kept < len(self._fed):
            self._matcher.rollback(len(self._fed) - num_kept)
            del self._fed[num_kept:]
        return num_kept
