"""The waiting and the running sequences, by rank, and the blocks of those that run.

Rank is the order of arrival or, under the priority policy, of (priority, arrival). Waiting
sequences are admitted by rank, so without priorities every running sequence is older than every
waiting one, unless a suspect runs alone (see `quarantine.py`). When blocks run out, the running
sequence of the last rank is preempted and recomputed later, so the first one always finishes.
"""

from bisect import insort
from collections.abc import Collection, Iterator
from itertools import pairwise

from engine.block_manager import BlockManager
from engine.errors import WorkerLost
from engine.plan import StepPlan
from engine.prefix_cache import PrefixCache
from engine.quarantine import Quarantine
from engine.sequence import Sequence, SequenceStatus

_WATERMARK = 0.01  # share of blocks left free at admission; at least one per running sequence


class Roster:
    """Holds the waiting and the running sequences, and moves them between the two."""

    def __init__(self, blocks: BlockManager, cache: PrefixCache, *, by_priority: bool) -> None:
        self._blocks = blocks
        self._cache = cache
        self._by_priority = by_priority
        self._waiting: list[Sequence] = []  # by rank, like `_running`
        self._running: list[Sequence] = []
        self._quarantine = Quarantine()
        self._ended: list[int] = []  # ids that the worker is yet to be told of
        self.num_preemptions = 0

    @property
    def running(self) -> Collection[Sequence]:
        """Sequences with blocks, by rank."""
        return self._running

    @property
    def waiting(self) -> Collection[Sequence]:
        """Sequences without blocks, by rank."""
        return self._waiting

    @property
    def has_ended(self) -> bool:
        """Whether the worker is yet to be told that a sequence ended."""
        return bool(self._ended)

    def take_ended(self) -> list[int]:
        """Return the ids of sequences that the worker may forget, each only once."""
        ended, self._ended = self._ended, []
        return ended

    def add(self, sequence: Sequence) -> None:
        """Add a new sequence to those that wait."""
        insort(self._waiting, sequence, key=_rank)

    def retire(self, sequence: Sequence) -> None:
        """Forget a finished sequence; its blocks are free at once. Idempotent.

        Safe while a step with it is in flight: the worker runs plans in order, so a later owner of
        a block writes before it reads.
        """
        self._quarantine.clear(sequence)
        if sequence in self._running:
            self._leave(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def admit(self, *, most: int) -> Iterator[Sequence]:
        """Start and yield waiting sequences by rank while fewer than `most` run and blocks last."""
        while len(self._running) < most:
            sequence = self._next()
            if sequence is None:
                return
            prefix = self._cache.find(sequence)
            if not self._blocks.start(
                sequence.sequence_id, sequence.num_tokens, prefix, keep_free=self._headroom()
            ):
                return
            self._waiting.remove(sequence)  # it is the first, unless it is a suspect
            insort(self._running, sequence, key=_rank)
            num_cached = len(prefix) * self._blocks.block_size
            if sequence.admit(num_cached):
                self._cache.count(sequence, num_cached)
            yield sequence

    def make_room(self, sequence: Sequence, num_positions: int) -> bool:
        """Reserve blocks for the first `num_positions` positions of a sequence.

        If too few are free, running sequences first give up the blocks beyond their known tokens,
        and then the last by rank is preempted until there are enough.

        Returns:
            False if the sequence was itself the last by rank and was preempted.
        """
        if self._blocks.reserve(sequence.sequence_id, num_positions):
            return True
        for other in self._running:
            self._blocks.trim(other.sequence_id, other.num_tokens)
        while not self._blocks.reserve(sequence.sequence_id, num_positions):
            last = self._running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        return True

    @property
    def is_wary(self) -> bool:
        """Whether workers were lost lately, so that progress has to be noted."""
        return not self._quarantine.is_empty

    def note_progress(self, sequence: Sequence) -> None:
        """Note that a sequence has a new token, so it does not kill workers.

        If it was a suspect, it is preempted, because those of higher rank go first again.
        """
        if self._quarantine.clear(sequence):
            self._preempt(sequence)

    def lose_worker(self, plan: StepPlan | None, loss: WorkerLost) -> list[Sequence]:
        """Preempt all sequences and find out which ones kill workers.

        Args:
            plan: The step that was in flight; None: the worker was idle.
            loss: How the worker ended.

        Returns:
            The guilty sequences, which the caller has to finish and retire.
        """
        rows = [] if plan is None else plan.rows
        in_flight = {row.sequence_id for row in rows}
        blamed = [sequence for sequence in self._running if sequence.sequence_id in in_flight]
        self._preempt_all()
        return self._quarantine.blame(blamed, loss, is_alone=len(rows) == 1)

    def check(self) -> None:
        """Assert the invariants that hold between any two calls."""
        self._blocks.check([sequence.sequence_id for sequence in self._running])
        for sequence in self._running:
            sequence.check()
            assert sequence.status is SequenceStatus.RUNNING
            held = len(self._blocks.table(sequence.sequence_id))
            assert held >= self._blocks.blocks_for(sequence.num_computed_tokens), "too few blocks"
            num_full = sequence.num_computed_tokens // self._blocks.block_size
            num_published = self._blocks.num_published(sequence.sequence_id)
            assert num_published <= num_full, "a block is published before it is computed"
        assert all(s.status is SequenceStatus.WAITING for s in self._waiting)
        for group in (self._running, self._waiting):
            ranks = [_rank(sequence) for sequence in group]
            assert all(first < second for first, second in pairwise(ranks)), "a sequence overtook"
        if self._quarantine.suspect is not None:
            assert len(self._running) <= 1, "a suspect has company"
        elif not self._by_priority and self._running and self._waiting:
            assert _rank(self._running[-1]) < _rank(self._waiting[0]), "a sequence overtook"

    def _next(self) -> Sequence | None:
        """Return the sequence that may start next, if any."""
        suspect = self._quarantine.suspect
        if suspect is not None:
            return None if self._running else suspect
        return self._waiting[0] if self._waiting else None

    def _headroom(self) -> int:
        """Return how many blocks to leave, so that a new sequence is not preempted at once."""
        num_running = len(self._running)
        return max(num_running, int(self._blocks.num_blocks * _WATERMARK)) if num_running else 0

    def _preempt_all(self) -> None:
        """Preempt all sequences, because the worker and all that it computed are gone."""
        while self._running:
            self._preempt(self._running[-1])
        self._blocks.forget_all()
        self._ended.clear()

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.preempt()
        insort(self._waiting, sequence, key=_rank)
        self.num_preemptions += 1

    def _leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._blocks.release(sequence.sequence_id)
        self._ended.append(sequence.sequence_id)


def _rank(sequence: Sequence) -> tuple[int, int]:
    """The sort key, lowest first; ids are given in order of arrival."""
    return sequence.request.priority, sequence.sequence_id
