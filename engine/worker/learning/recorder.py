"""Takes examples out of the decode step: rows of tensors that it has anyway.

Verification labels every token that stands, drafted or not. Lives between the step's exits and its
verifier; learns nothing itself.
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
from engine.worker.learning.trainee import unit_rms
from engine.worker.row import Row
from engine.worker.sequence_state import SequenceState

logger = logging.getLogger(__name__)


class Recorder:
    """Fills the examples, step by step."""

    def __init__(
        self,
        examples: Examples,
        heads: ExitHeads,
        observe: Callable[[Row, RowResult], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Args:
        observe: Told of every row and what came of it.
        """
        self.is_open = True  # False: steps pass unseen
        self.is_broken = False  # something raised: for good
        self._examples = examples
        self._token_ids = heads.token_ids.long()
        self._columns: list[int] = heads.columns.tolist()
        self._observe = observe
        self._clock = clock
        self._seconds = 0.0
        self._num_exits = len(heads.heads)
        self._seen: list[dict[TokenRef, Tensor]] = []
        # The newest example of each sequence of the step before, and where it stood.
        self._newest: dict[SequenceState, tuple[int, int]] = {}

    def begin(self) -> None:
        """A step begins; what one that failed has left is forgotten."""
        self._seen = [{} for _ in range(self._num_exits)]

    def see_exit(
        self, exit_index: int, rows: Sequence[Row], refs: Sequence[TokenRef], hidden: Tensor
    ) -> None:
        """Tokens have come to an exit.

        Args:
            hidden: [T, E], one state for each of `refs`.
        """
        if not self.is_open:
            return
        seen = self._seen[exit_index]
        for place, ref in enumerate(refs):
            row = rows[ref.row]
            if row.plan.is_decoding and ref.position >= row.first_pending:
                seen[ref] = hidden[place]

    def see_verified(
        self, rows: Sequence[Row], results: Sequence[RowResult], last: Tensor, logits: Tensor
    ) -> None:
        """The step is verified; states have not advanced yet.

        Args:
            last: [P, E], the last layer's states of all pending tokens, row by row.
            logits: [P, V], as the model gives them.
        """
        started = self._clock()
        before, self._newest = self._newest, {}
        try:
            self._take(rows, results, before, last, logits)
        except Exception:  # the step is not to end for it
            logger.exception("heads learn no more")
            self.is_broken = True
            self.is_open = False
        self._seconds += self._clock() - started

    def take_seconds(self) -> float:
        """How long recording took since the last call."""
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
        offset = 0
        for index, (row, result) in enumerate(zip(rows, results, strict=True)):
            mine = slice(offset, offset + len(result.token_ids))
            offset += len(row.sample_points())
            self._observe(row, result)
            if self.is_open and result.token_ids:
                self._add(index, row, result, before.get(row.state), last[mine], logits[mine])

    def _add(
        self,
        index: int,
        row: Row,
        result: RowResult,
        before: tuple[int, int] | None,
        last: Tensor,
        logits: Tensor,
    ) -> None:
        first, count = row.first_pending, len(result.token_ids)
        refs = [TokenRef(index, position) for position in range(first, first + count)]
        states = [[seen[ref] for ref in refs] for seen in self._seen]
        reduced = logits.index_select(1, self._token_ids)
        size = reduced.shape[1]
        targets = [self._columns[token_id] for token_id in result.token_ids]
        columns = torch.tensor(targets, device=logits.device)[:, None]
        # A token that is outside stands for all of them; how likely they were together is not
        # worth a pass over the whole vocabulary.
        is_outside = columns < 0
        probs = torch.cat((reduced.softmax(-1) * ~is_outside, is_outside.float()), dim=1)
        follows = before is not None and before[1] == first - 1
        serial = self._examples.add(
            Verified(
                exits=unit_rms(torch.stack([torch.stack(each) for each in states])),
                last=unit_rms(last),
                probs=probs,
                targets=[size if target < 0 else target for target in targets],
            ),
            before[0] if before is not None and follows else None,
        )
        self._newest[row.state] = (serial, first + count - 1)
