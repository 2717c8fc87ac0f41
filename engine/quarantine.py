"""Who may be what kills workers: suspects run alone until they get further, the guilty are named.

A worker's death is blamed on every sequence of the step it died in. A new token clears a sequence,
so streams that go on between two deaths are never suspected, however many workers somebody kills.

    in one death ─ again, no token between ─▶ suspect: runs alone ─ dies alone thrice ─▶ guilty
         ◀──────────────── any new token ────────────────┘
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.sequence import Sequence

_DEATHS_OF_A_SUSPECT = 2  # in whatever company
_DEATHS_OF_THE_GUILTY = 3  # alone in the step; with two, a starved stream was blamed for `kill -9`


@dataclass(slots=True)
class _Record:
    """Deaths since a sequence's last new token."""

    sequence: Sequence
    num_deaths: int = 0
    num_deaths_alone: int = 0

    @property
    def is_suspect(self) -> bool:
        return self.num_deaths >= _DEATHS_OF_A_SUSPECT or self.num_deaths_alone > 0


class Quarantine:
    """Deaths of workers by sequence. Empty, and free of cost, while workers live."""

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}

    @property
    def suspect(self) -> Sequence | None:
        """The sequence that has to run alone now; None: all may run together."""
        if not self._records:
            return None
        suspects = (record.sequence for record in self._records.values() if record.is_suspect)
        return min(suspects, key=lambda sequence: sequence.sequence_id, default=None)

    def blame(self, sequences: Iterable[Sequence], *, is_alone: bool) -> list[Sequence]:
        """Note that a worker died computing these.

        Args:
            is_alone: Nothing else was in the step.

        Returns:
            Those that are guilty; they are forgotten here.
        """
        guilty = []
        for sequence in sequences:
            record = self._records.setdefault(sequence.sequence_id, _Record(sequence))
            record.num_deaths += 1
            record.num_deaths_alone += is_alone
            if record.num_deaths_alone >= _DEATHS_OF_THE_GUILTY:
                guilty.append(sequence)
                self.clear(sequence)
        return guilty

    def clear(self, sequence: Sequence) -> bool:
        """A sequence got further, or has ended; returns whether it was a suspect."""
        record = self._records.pop(sequence.sequence_id, None)
        return record is not None and record.is_suspect
