"""Finds the sequences that kill workers: suspects run alone until they make progress.

When a worker is lost, every sequence of the step in flight is blamed. A new token clears a
sequence, so streams that make progress between two losses never become suspects, however many
workers somebody kills.

A worker that crashed was brought down by what it computed, so two crashes are enough: the first
makes all blamed sequences suspects, and a suspect that crashes another worker alone is guilty.

    in one crash ─▶ suspect: runs alone ─ crashes another alone ─▶ guilty
         ◀──────────── any new token ───────┘

A worker that was ended from outside (`kill -9`) says little about what it computed, although lack
of memory looks the same. It takes two such ends to become a suspect, or one alone, and three alone
to be guilty: with fewer, a stream that waited long for its turn was blamed for a storm of kills.
Where somebody's signal was the end (`WorkerLost.was_killed`), it takes ten alone: people kill at
random, whereas programs that guard memory kill the same request's worker over and over. Suspects
run alone in this case, too, because alone they make more progress between two kills.

    in one end ─ another, no token between ─▶ suspect: runs alone ─ ends three alone ─▶ guilty
         ◀──────────────────── any new token ───────────┘
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.errors import WorkerLost
from engine.sequence import Sequence

_CRASHES_OF_THE_GUILTY = 2  # crashes in any company, the last one alone
_ENDS_OF_A_SUSPECT = 2  # ends from outside, in any company
_ENDS_OF_THE_GUILTY = 3  # ends from outside, alone
_KILLS_OF_THE_GUILTY = 10  # ends from outside, alone, the last one by somebody's signal


@dataclass(slots=True)
class _Record:
    """The workers that a sequence has lost since its last new token."""

    sequence: Sequence
    num_crashes: int = 0
    num_ends: int = 0  # from outside
    num_ends_alone: int = 0

    @property
    def is_suspect(self) -> bool:
        return (
            self.num_crashes > 0 or self.num_ends >= _ENDS_OF_A_SUSPECT or self.num_ends_alone > 0
        )

    def note(self, loss: WorkerLost, *, is_alone: bool) -> bool:
        """Count another lost worker; returns whether that makes the sequence guilty."""
        if loss.is_crash:
            self.num_crashes += 1
            return is_alone and self.num_crashes >= _CRASHES_OF_THE_GUILTY
        self.num_ends += 1
        self.num_ends_alone += is_alone
        return self.num_ends_alone >= (
            _KILLS_OF_THE_GUILTY if loss.was_killed else _ENDS_OF_THE_GUILTY
        )


class Quarantine:
    """The lost workers of each sequence; empty, and free of cost, while no worker is lost."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}

    @property
    def is_empty(self) -> bool:
        """Whether every sequence has made progress since it last lost a worker."""
        return not self._records

    @property
    def suspect(self) -> Sequence | None:
        """The sequence that has to run alone now; None: all may run together."""
        if not self._records:
            return None
        suspects = (record.sequence for record in self._records.values() if record.is_suspect)
        return min(suspects, key=lambda sequence: sequence.sequence_id, default=None)

    def blame(
        self, sequences: Iterable[Sequence], loss: WorkerLost, *, is_alone: bool
    ) -> list[Sequence]:
        """Note that a worker was lost while it computed these sequences.

        Args:
            sequences: Those in the step that was in flight.
            loss: How the worker ended.
            is_alone: Whether the step had no more than one row.

        Returns:
            The guilty sequences, which the caller has to clear.
        """
        guilty = []
        for sequence in sequences:
            record = self._records.setdefault(sequence.sequence_id, _Record(sequence))
            if record.note(loss, is_alone=is_alone):
                guilty.append(sequence)
        return guilty

    def clear(self, sequence: Sequence) -> bool:
        """Forget a sequence that made progress or ended; returns whether it was a suspect."""
        record = self._records.pop(sequence.sequence_id, None)
        return record is not None and record.is_suspect
