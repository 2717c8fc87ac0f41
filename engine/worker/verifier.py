"""The end of a step: turns the last layer's states into tokens, verifies drafts, and reads prompts.

One call of the LM head chooses a token after every pending token of every row; each row keeps the
longest prefix of its drafts that equals these choices. A fault in one row's share fails only that
row. Does not know how the states were computed.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

from engine.model.decoder import Decoder
from engine.plan import RowResult
from engine.worker.acceptance import NO_CHOICE, Acceptance
from engine.worker.device_errors import is_row_fault
from engine.worker.forward_batch import TokenRef
from engine.worker.learning.recorder import Recorder
from engine.worker.logprobs import Wanted, read_for_rows
from engine.worker.prompt_reader import NotNumbers, PromptReader, wants_reading
from engine.worker.row import Row
from engine.worker.row_faults import NO_RESULT, corrupt, failed, with_broken_states, without_choice
from engine.worker.row_gather import copy_rows, take_rows
from engine.worker.sample_point import SamplePoint
from engine.worker.sampler import Sampler
from engine.worker.segment_runner import SegmentRunner

logger = logging.getLogger(__name__)


class _Choices(NamedTuple):
    """The tokens chosen after a step's P pending tokens."""

    token_ids: list[int]  # NO_CHOICE where none could be chosen
    logits: Tensor  # [P, V]; overwritten if the next step's pass is launched
    are_nan_early: Tensor | None = None  # [P] bool, computed before that

    @property
    def are_nan(self) -> Tensor:
        """[P] bool: whether there is a NaN among the logits."""
        return self.logits.isnan().any(dim=-1) if self.are_nan_early is None else self.are_nan_early


class Verifier:
    """Verifies the drafts of steps on one model and commits their results."""

    def __init__(
        self,
        decoder: Decoder,
        runner: SegmentRunner,
        acceptance: Acceptance,
        recorder: Recorder | None = None,
    ) -> None:
        self._runner = runner
        self._acceptance = acceptance
        self._recorder = recorder
        self._ops = decoder.ops
        self._sampler = Sampler(decoder.ops)
        self._reader = PromptReader(decoder)

    def verify(
        self,
        rows: Sequence[Row],
        refs: Sequence[TokenRef],
        hidden: Tensor,
        *,
        keeps_states: bool,
    ) -> list[RowResult]:
        """Choose the target's token after each pending one; accept a prefix of each row's drafts.

        Args:
            refs: Every token of the step.
            hidden: [T, E], their last layer's states.
            keeps_states: Whether rows keep the last hidden state of their newest computed token,
                for heads to read.

        Returns:
            One result per row, in order. Either all rows' states advance, or, if this raises, none.
        """
        places = {ref: place for place, ref in enumerate(refs)}
        pending = [[places[ref] for ref in row.pending_refs(i)] for i, row in enumerate(rows)]
        last_hidden = take_rows(hidden, [place for mine in pending for place in mine])
        firsts = [0, *accumulate(map(len, pending))]
        points = [point for row in rows for point in row.sample_points()]
        choices = self._choose(points, last_hidden)
        results: list[RowResult] = []
        hidden_sums: list[Tensor | None] = []
        for index, row in enumerate(rows):
            targets = choices.token_ids[firsts[index] : firsts[index + 1]]
            known = _known_states(index, row, places, hidden)
            result, hidden_sum = self._result(row, targets, known)
            results.append(result)
            hidden_sums.append(hidden_sum)
        results = _complete(rows, results, firsts, choices)
        newest = _newest_states(rows, results, firsts, last_hidden) if keeps_states else {}
        results = _without_broken_prompts(rows, refs, hidden, results)
        if self._recorder is not None:
            self._recorder.see_verified(rows, results, last_hidden, choices.logits)
        # Nothing raises from here on: a step changes all its states or none.
        for row, hidden_sum in zip(rows, hidden_sums, strict=True):
            row.state.hidden_sum = hidden_sum
        _advance(rows, results, [newest.get(index) for index in range(len(rows))])
        return results

    def next_tokens(
        self,
        rows: Sequence[Row],
        hidden: Tensor,
        *,
        keeps_states: bool,
        launch_next: Callable[[Tensor], None] | None = None,
    ) -> list[RowResult]:
        """Do what `verify` does for a plain step: one token per row, nothing drafted, and nothing
        asked of a prompt.

        As little work as possible follows the choice, because a GPU idles meanwhile.

        Args:
            hidden: [T, E], the last layer's states, row by row.
            launch_next: Called with the chosen tokens, [T] int64 on the device, before they are
                read. It overwrites the step's logits, so no row may want log-probabilities.
        """
        newest = hidden.clone().unbind() if keeps_states else [None] * len(rows)
        points = [SamplePoint(row.state, ()) for row in rows]
        choices = self._choose(points, hidden, launch_next)
        results = [
            RowResult(row.state.sequence_id, [token_id])
            for row, token_id in zip(rows, choices.token_ids, strict=True)
        ]
        results = _complete(rows, results, range(len(rows) + 1), choices)
        # Nothing raises from here on: a step changes all its states or none.
        _advance(rows, results, newest)
        return results

    def _choose(
        self,
        points: Sequence[SamplePoint],
        hidden: Tensor,
        launch_next: Callable[[Tensor], None] | None = None,
    ) -> _Choices:
        """Choose a token after each of P pending ones, whose last hidden states are [P, E]."""
        if not points:
            return _Choices([], hidden)
        logits = self._runner.logits(hidden)
        scores = self._sampler.scores(logits, points)
        chosen = self._sampler.choose(scores, points)
        read = self._ops.fetch(chosen)
        are_nan: Tensor | None = None
        if launch_next is not None:
            # Without processors, a missing choice means NaN in the logits.
            are_nan = chosen < 0 if scores is logits else logits.isnan().any(dim=-1)
            launch_next(chosen)
        return _Choices(read(), logits, are_nan)

    def _result(
        self, row: Row, targets: Sequence[int], known: Tensor | None
    ) -> tuple[RowResult, Tensor | None]:
        """Return a row's result, and the sum [E] over its prompt that its state will keep.

        Args:
            targets: The token chosen after each pending one.
            known: [plan.num_tokens, E], states of the known tokens if anything is asked of the
                prompt.
        """
        try:
            result = self._acceptance.accept(row, targets)
            if known is None:
                return result, None
            reading = self._reader.read(row.plan, row.state, known)
            logprobs = tuple(reading.logprobs)
            result = replace(result, prompt_logprobs=logprobs, embedding=reading.embedding)
            return result, reading.hidden_sum
        except NotNumbers:
            return corrupt(row), None
        except Exception as error:
            if not is_row_fault(error):
                raise
            logger.exception("sequence %d: %s", row.state.sequence_id, NO_RESULT)
            return failed(row), None


def _complete(
    rows: Sequence[Row], results: list[RowResult], firsts: Sequence[int], choices: _Choices
) -> list[RowResult]:
    """Return the results with errors for rows without a token, and with log-probabilities.

    Args:
        firsts: Per row, the index of its first pending token among all P of them; then P.
    """
    if NO_CHOICE in choices.token_ids:
        results = without_choice(rows, results, firsts[:-1], choices.are_nan)
    return _with_logprobs(rows, results, firsts, choices.logits)


def _advance(
    rows: Sequence[Row], results: Sequence[RowResult], newest: Sequence[Tensor | None]
) -> None:
    """Commit the rows' new tokens.

    Args:
        newest: Per row, the state [E] that its newest token was chosen from, if it is kept.
    """
    for row, result, last_hidden in zip(rows, results, newest, strict=True):
        if result.token_ids:
            row.state.append(result.token_ids)
            row.state.last_hidden = last_hidden


def _newest_states(
    rows: Sequence[Row], results: Sequence[RowResult], firsts: Sequence[int], last_hidden: Tensor
) -> dict[int, Tensor]:
    """Return, for each row with new tokens, the state [E] that its newest one was chosen from.

    Args:
        firsts: Per row, the index of its first pending token in `last_hidden`.
        last_hidden: [P, E].
    """
    places = {
        index: firsts[index] + row.sources(len(result.token_ids))[-1]
        for index, (row, result) in enumerate(zip(rows, results, strict=True))
        if result.token_ids
    }
    # Copies, so that the step's tensors need not outlive it.
    if len(places) <= 1:
        return {index: last_hidden[place].clone() for index, place in places.items()}
    return dict(zip(places, copy_rows(last_hidden, list(places.values())), strict=True))


def _with_logprobs(
    rows: Sequence[Row], results: list[RowResult], firsts: Sequence[int], logits: Tensor
) -> list[RowResult]:
    """Return the results with the log-probabilities that their rows want.

    Args:
        firsts: Per row, the index of its first pending token in `logits`.
        logits: [P, V].
    """
    wanted: dict[int, list[Wanted]] = {}
    for index, (row, result) in enumerate(zip(rows, results, strict=True)):
        num_top = row.state.sampling.num_logprobs
        if num_top is not None and result.token_ids:
            ids = result.token_ids
            wanted[index] = [
                Wanted(firsts[index] + source, token_id, num_top)
                for source, token_id in zip(row.sources(len(ids)), ids, strict=True)
            ]
    if not wanted:
        return results
    completed = list(results)
    for index, logprobs in read_for_rows(logits, wanted).items():
        if logprobs is None:
            completed[index] = failed(rows[index])
        else:
            completed[index] = replace(completed[index], logprobs=tuple(logprobs))
    return completed


def _known_states(
    index: int, row: Row, places: Mapping[TokenRef, int], hidden: Tensor
) -> Tensor | None:
    """Return the states of a row's known tokens if anything is asked of its prompt."""
    if not wants_reading(row.plan, row.state):
        return None
    positions = range(row.plan.start, row.plan.start + row.plan.num_tokens)
    return take_rows(hidden, [places[TokenRef(index, position)] for position in positions])


def _without_broken_prompts(
    rows: Sequence[Row], refs: Sequence[TokenRef], hidden: Tensor, results: list[RowResult]
) -> list[RowResult]:
    """Return the results with errors for unfinished prompts whose states are not finite, before
    other sequences share their KV.

    The last token of a chunk has read all tokens before it, so checking its state is enough.
    """
    last = {
        ref.row: place
        for place, ref in enumerate(refs)
        if not rows[ref.row].plan.is_decoding and ref.position == rows[ref.row].first_pending
    }
    if not last:
        return results
    are_sound = take_rows(hidden, list(last.values())).isfinite().all(dim=-1).tolist()
    broken = {row for row, is_sound in zip(last, are_sound, strict=True) if not is_sound}
    return [
        with_broken_states(result) if row in broken else result
        for row, result in enumerate(results)
    ]
