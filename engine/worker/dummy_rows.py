"""Rows that stand for any others while costs are measured: whole steps and whole looks, with all
that the host does for them.

On a device that computes after calls have returned, a part's own time says little: between parts
it waits for the host, the longer the more rows there are.
"""

from collections.abc import Callable

from torch import Tensor

from engine.plan import RowPlan, SequenceStart
from engine.worker.decode_step import DecodeStep
from engine.worker.exit_look import Arrival, ExitLook
from engine.worker.row import Row
from engine.worker.sequence_state import SequenceState


class DummyRows:
    """Each is at its first token, in block 0, and samples."""

    def __init__(self, step: DecodeStep, look: ExitLook | None) -> None:
        """Args:
        step: Without a drafter.
        """
        self._step = step
        self._look = look

    def plain_step(self, count: int) -> Callable[[], object]:
        """A step of so many rows without drafts."""
        rows = [_row(number) for number in range(count)]

        def call() -> object:
            for row in rows:
                del row.state.token_ids[1:]
            return self._step.run([row.plan for row in rows], [row.state for row in rows])

        return call

    def look(self, exit_index: int, hidden: Tensor) -> Callable[[], object]:
        """An exit's look at as many rows as there are states [T, E]."""
        assert self._look is not None, "there are exits"
        look, rows = self._look, [_row(number) for number in range(len(hidden))]
        arrivals = [Arrival(row, [place]) for place, row in enumerate(rows)]

        def call() -> object:
            for row, state in zip(rows, hidden.unbind(), strict=True):
                row.estimates = [state]
            return look.opinions(exit_index, arrivals, hidden)

        return call


def _row(number: int) -> Row:
    plan = RowPlan(
        sequence_id=number,
        start=0,
        num_tokens=1,
        block_table=[0],
        max_draft_tokens=0,
        is_decoding=True,
    )
    return Row(plan, SequenceState(_start(number)))


def _start(number: int) -> SequenceStart:
    return SequenceStart(
        sequence_id=number,
        token_ids=[0],
        num_prompt_tokens=1,
        temperature=1.0,
        top_p=1.0,
        top_k=-1,
        min_p=0.0,
        seed=number,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        logit_bias={},
        min_tokens=0,
        stop_token_ids=[],
        num_logprobs=None,
        early_exit=True,
        threshold=None,
    )
