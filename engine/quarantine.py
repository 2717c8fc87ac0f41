"""Who may be what kills workers: suspects run alone until they get further, the guilty are named.

A worker's end is blamed on every sequence of the step it ended in. A new token clears a sequence,
so streams that go on between two ends are never suspected, however many workers somebody kills.

A worker that crashed came down over what it computed, so two are enough: after the first all are
suspects, and who then crashes another alone is guilty.

    in one crash ─▶ suspect: runs alone ─ crashes another alone ─▶ guilty
         ◀──────────── any new token ───────┘

One that was ended from outside (`kill -9`) says little of what it computed, though want of memory
looks the same: it takes two to be a suspect, and three more alone. With less a stream that waited
long for its turn was blamed for a storm of kills. Where somebody's signal did it, as far as the
kernel knows (`WorkerLost.was_killed`), it takes ten alone: people kill at random, and programs that
guard the memory kill the same request's worker over and over. Suspects run alone all the same,
because alone they get further between two kills.

    in one end ─ another, no token between ─▶ suspect: runs alone ─ ends three alone ─▶ guilty
         ◀──────────────────── any new token ───────────┘
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.errors import WorkerLost
from engine.sequence import Sequence

_CRASHES_OF_THE_GUILTY = 2  # the last one alone
_ENDS_OF_A_SUSPECT = 2  # in whatever company
_ENDS_OF_THE_GUILTY = 3  # alone
_KILLS_OF_THE_GUILTY = 10  # alone, by somebody


@dataclass(slots=True)
class _Record:
    """Workers lost since a sequence's last new token."""

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
        """Another worker is lost; returns whether that makes it guilty."""
        if loss.is_crash:
            self.num_crashes += 1
            return is_alone and self.num_crashes >= _CRASHES_OF_THE_GUILTY
        self.num_ends += 1
        self.num_ends_alone += is_alone
        return self.num_ends_alone >= (
            _KILLS_OF_THE_GUILTY if loss.was_killed else _ENDS_OF_THE_GUILTY
        )


class Quarantine:
    """Lost workers by sequence. Empty, and free of cost, while workers live."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nobody has lost a worker since its last progress."""
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
        """Note that a worker was lost computing these.

        Args:
            is_alone: Nothing else was in the step.

        Returns:
            Those that are guilty; they are forgotten here.
        """
        guilty = []
        for sequence in sequences:
            record = self._records.setdefault(sequence.sequence_id, _Record(sequence))
            if record.note(loss, is_alone=is_alone):
                guilty.append(sequence)
                self.clear(sequence)
        return guilty

    def clear(self, sequence: Sequence) -> bool:
        """A sequence got further, or has ended; returns whether it was a suspect."""
        record = self._records.pop(sequence.sequence_id, None)
        return record is not None and record.is_suspect
