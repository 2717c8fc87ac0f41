"""Records training examples from the decode step, out of tensors that the step computes anyway.

Verification labels every committed token, drafted or not. The step reports its tokens at each exit,
and again once they are verified; the recorder itself trains nothing.
"""

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from engine.model.exit_head import ExitHeads
from engine.plan import RowResult
from engine.worker.forward_batch import TokenRef
from engine.worker.learning.examples import Examples, Verified
from engine.worker.learning.unit_rms import unit_rms
from engine.worker.row import Row
from engine.worker.row_gather import take_rows
from engine.worker.sequence_state import SequenceState
from engine.worker.upload import upload

logger = logging.getLogger(__name__)

_BATCH = 32  # positions that are turned into examples together
_MANY = 64  # from calls of more tokens than this, states are copied


class Recorder:
    """Fills the ring of examples, step by step."""

    def __init__(
        self,
        examples: Examples,
        heads: ExitHeads,
        observe: Callable[[Row, RowResult], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        Args:
            examples: The ring to fill.
            heads: The heads that serve.
            observe: Called with every row and its result.
            clock: Returns seconds; measures the time that recording takes.
        """
        self.is_open = True  # False: steps are not recorded
        self.is_broken = False  # True for good once recording or training has raised
        self._examples = examples
        self._token_ids = heads.token_ids.long()
        self._columns: list[int] = heads.columns.tolist()
        self._observe = observe
        self._clock = clock
        self._seconds = 0.0
        self._num_exits = len(heads.heads)
        self._seen: list[dict[TokenRef, Tensor]] = []
        self._clear()
        # The serial number and position of each sequence's newest example in the previous step.
        self._newest: dict[SequenceState, tuple[int, int]] = {}

    def begin(self) -> None:
        """Begin a step, and forget what a failed one left."""
        self._seen = [{} for _ in range(self._num_exits)]

    def see_exit(
        self, exit_index: int, rows: Sequence[Row], refs: Sequence[TokenRef], hidden: Tensor
    ) -> None:
        """Note the states of decoding tokens that have reached an exit.

        Args:
            exit_index: Index of the exit.
            rows: The rows of the step.
            refs: The tokens.
            hidden: [T, E], one state for each of `refs`.
        """
        if not self.is_open:
            return
        seen = self._seen[exit_index]
        for place, ref in enumerate(refs):
            row = rows[ref.row]
            if row.plan.is_decoding and ref.position >= row.first_pending:
                # A view would keep the states of a whole prompt in memory.
                seen[ref] = hidden[place].clone() if len(refs) > _MANY else hidden[place]

    def see_verified(
        self, rows: Sequence[Row], results: Sequence[RowResult], last: Tensor, logits: Tensor
    ) -> None:
        """Record a verified step, before its sequences advance; never raises.

        Args:
            rows: The rows of the step.
            results: Their results.
            last: [P, E], the last layer's states of all P pending tokens, row by row.
            logits: [P, V], the model's logits of them, unprocessed.
        """
        started = self._clock()
        before, self._newest = self._newest, {}
        try:
            self._take(rows, results, before, last, logits)
        except Exception:  # a failure of recording must not fail the step
            logger.exception("heads learn no more")
            self.is_broken = True
            self.is_open = False
        self._seconds += self._clock() - started

    def take_seconds(self) -> float:
        """Return the seconds that recording has taken since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _take(
        self,
        rows: Sequence[Row],
        results: Sequence[RowResult],
        before: dict[SequenceState, tuple[int, int]],
        last: Tensor,
        logits: Tensor,
    ) -> None:
        first = 0
        reduced = logits.index_select(1, self._token_ids) if self.is_open and len(last) else logits
        for index, (row, result) in enumerate(zip(rows, results, strict=True)):
            sources = row.sources(len(result.token_ids))
            mine = slice(first, first + row.num_pending)
            first = mine.stop
            self._observe(row, result)
            if self.is_open and result.token_ids:
                self._put(index, row, result, before.get(row.state))
                # A copy, because a view would keep the states of a whole prompt in memory.
                self._last.append(take_rows(last[mine], sources).clone())
                self._reduced.append(take_rows(reduced[mine], sources))
        if len(self._targets) >= _BATCH:
            self._flush()

    def _put(self, index: int, row: Row, result: RowResult, before: tuple[int, int] | None) -> None:
        first, count = row.first_pending, len(result.token_ids)
        pending = row.pending_refs(index)
        refs = [pending[source] for source in row.sources(count)]
        for states, seen in zip(self._exits, self._seen, strict=True):
            states += [seen[ref] for ref in refs]
        serial = self._examples.num_written + len(self._targets)
        follows = before is not None and before[1] == first - 1
        self._before += [before[0] if before is not None and follows else None]
        self._before += range(serial, serial + count - 1)
        self._targets += [self._columns[token_id] for token_id in result.token_ids]
        self._newest[row.state] = (serial + count - 1, first + count - 1)

    def _flush(self) -> None:
        """Turn the gathered positions into examples; together they cost less than one by one."""
        reduced, last = torch.cat(self._reduced), torch.cat(self._last)
        size = reduced.shape[1]
        columns = upload(self._targets, torch.int64, reduced.device)[:, None]
        # Where the token that came is outside the reduced vocabulary, "other" gets probability 1,
        # else 0: its true probability is not worth a pass over the whole vocabulary.
        is_outside = columns < 0
        probs = torch.cat((reduced.softmax(-1) * ~is_outside, is_outside.float()), dim=1)
        exits = torch.stack([torch.stack(states) for states in self._exits])
        verified = Verified(
            exits=unit_rms(exits),
            last=unit_rms(last),
            probs=probs,
            targets=[size if target < 0 else target for target in self._targets],
        )
        before = self._before
        self._clear()
        self._examples.add(verified, before)

    def _clear(self) -> None:
        self._exits: list[list[Tensor]] = [[] for _ in range(self._num_exits)]
        self._last: list[Tensor] = []
        self._reduced: list[Tensor] = []
        self._targets: list[int] = []  # columns; -1 outside the reduced vocabulary
        self._before: list[int | None] = []
