"""The end of a step: the last layer's states become tokens, verdicts on drafts, and what is asked
of prompts.

One call of the LM head chooses for every pending token of every row; each row keeps the longest
prefix of its drafts that equals its own choices. A fault in one row's share is that row's own.
Knows nothing of exit heads or of how the states came to be.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from engine.model.decoder import Decoder
from engine.plan import RowResult
from engine.request import LOOKED_UP, ExitRecord
from engine.worker.acceptance import num_accepted
from engine.worker.device_errors import is_row_fault
from engine.worker.forward_batch import TokenRef
from engine.worker.learning.recorder import Recorder
from engine.worker.logprobs import Wanted, read_for_rows
from engine.worker.prompt_reader import NotNumbers, PromptReader, wants_reading
from engine.worker.row import Alternate, Draft, Row
from engine.worker.sample_point import SamplePoint
from engine.worker.sampler import Sampler
from engine.worker.segment_runner import SegmentRunner
from engine.worker.upload import upload

logger = logging.getLogger(__name__)

_NOT_NUMBERS = "the model's logits are not numbers"
_NO_RESULT = "the row's result could not be made"
_DEAD_END = "at some point of the output no token of the vocabulary is allowed"


class Verifier:
    """Ends steps on one model."""

    def __init__(
        self,
        decoder: Decoder,
        runner: SegmentRunner,
        exit_layers: Sequence[int],
        recorder: Recorder | None = None,
    ) -> None:
        self._runner = runner
        self._recorder = recorder
        self._exit_layers = exit_layers
        self._ops = decoder.ops
        self._sampler = Sampler(decoder.ops)
        self.accepts_all = False  # benchmarks of what verification is worth
        self._reader = PromptReader(decoder)

    def verify(
        self,
        rows: Sequence[Row],
        refs: Sequence[TokenRef],
        hidden: Tensor,
        *,
        keeps_states: bool,
    ) -> list[RowResult]:
        """The target's choices for all pending tokens, and the accepted prefix of every row.

        Args:
            refs: Every token of the step.
            hidden: [T, E], their last layer's states.
            keeps_states: Rows keep that of their newest token, for heads to read.

        Returns:
            One result per row, in order. The rows' states have advanced: all of them, or none.
        """
        places = {ref: place for place, ref in enumerate(refs)}
        pending = [[places[ref] for ref in row.pending_refs(i)] for i, row in enumerate(rows)]
        last_hidden = _states_at(hidden, [place for mine in pending for place in mine])
        firsts = [0, *accumulate(map(len, pending))]
        choices, logits = self._choose(rows, last_hidden)
        results: list[RowResult] = []
        hidden_sums: list[Tensor | None] = []
        for index, row in enumerate(rows):
            mine = slice(firsts[index], firsts[index + 1])
            known = _known_states(index, row, places, hidden)
            result, hidden_sum = self._result(row, choices[mine], known)
            results.append(result)
            hidden_sums.append(hidden_sum)
        if -1 in choices:
            results = _without_choice(rows, results, firsts, logits.isnan().any(dim=-1))
        results = _with_logprobs(rows, results, firsts, logits)
        newest = _newest_states(rows, results, firsts, last_hidden) if keeps_states else {}
        results = _without_broken_prompts(rows, refs, hidden, results)
        if self._recorder is not None:
            self._recorder.see_verified(rows, results, last_hidden, logits)
        # Nothing raises from here on: a step changes all its states or none.
        for index, (row, result) in enumerate(zip(rows, results, strict=True)):
            row.state.hidden_sum = hidden_sums[index]
            if result.token_ids:
                row.state.append(result.token_ids)
                row.state.last_hidden = newest.get(index)
        return results

    def next_tokens(
        self,
        rows: Sequence[Row],
        hidden: Tensor,
        *,
        keeps_states: bool,
        launch_next: Callable[[Tensor], None] | None = None,
    ) -> list[RowResult]:
        """`verify` where every row has one token in the step, nothing is drafted, and nothing asked
        of a prompt. As little as can be follows the choice: a GPU waits for it.

        Args:
            hidden: [T, E], the last layer's states, row by row.
            launch_next: Called with the tokens chosen, [T] int64 on the device (-1: none), before
                they are read. The step's logits are gone then; no row may want any.
        """
        states = [row.state for row in rows]
        points = [SamplePoint(state, ()) for state in states]
        wants_logprobs = any(state.sampling.num_logprobs is not None for state in states)
        newest = hidden.clone().unbind() if keeps_states else [None] * len(states)
        logits = self._runner.logits(hidden)
        scores = self._sampler.scores(logits, points)
        chosen = self._sampler.launch(scores, points)
        read = self._ops.fetch(chosen)
        are_nan: Tensor | None = None
        if launch_next is not None:
            # Only what rows themselves ask for can leave numbers and no choice.
            are_nan = chosen < 0 if scores is logits else logits.isnan().any(dim=-1)
            launch_next(chosen)
        choices = read()
        results = [
            RowResult(state.start.sequence_id, [token_id])
            for state, token_id in zip(states, choices, strict=True)
        ]
        firsts = range(len(rows) + 1)
        if -1 in choices:
            are_nan = logits.isnan().any(dim=-1) if are_nan is None else are_nan
            results = _without_choice(rows, results, firsts, are_nan)
        if wants_logprobs:
            results = _with_logprobs(rows, results, firsts, logits)
        # Nothing raises from here on: a step changes all its states or none.
        for state, result, last_hidden in zip(states, results, newest, strict=True):
            if result.token_ids:
                state.append(result.token_ids)
                state.last_hidden = last_hidden
        return results

    def _choose(self, rows: Sequence[Row], last_hidden: Tensor) -> tuple[list[int], Tensor]:
        """Tokens chosen and logits [P, V] for the states [P, E] of all pending tokens."""
        points = [point for row in rows for point in row.sample_points()]
        if not points:
            return [], last_hidden
        logits = self._runner.logits(last_hidden)
        return self._sampler.choose(self._sampler.scores(logits, points), points), logits

    def _result(
        self, row: Row, targets: Sequence[int], known: Tensor | None
    ) -> tuple[RowResult, Tensor | None]:
        """What a row's client gets, and the sum over its prompt [E] that its state takes over. A
        fault is the row's own.

        Args:
            targets: One per pending token; -1 where there is no choice.
            known: [plan.num_tokens, E], where something is asked of the prompt.
        """
        try:
            result = self._accept(row, targets)
            if known is None:
                return result, None
            reading = self._reader.read(row.plan, row.state, known)
            logprobs = tuple(reading.logprobs)
            result = replace(result, prompt_logprobs=logprobs, embedding=reading.embedding)
            return result, reading.hidden_sum
        except NotNumbers:
            return _corrupt(row), None
        except Exception as error:
            if not is_row_fault(error):
                raise
            logger.exception("sequence %d: %s", row.state.sequence_id, _NO_RESULT)
            return _failed(row, _NO_RESULT), None

    def _accept(self, row: Row, targets: Sequence[int]) -> RowResult:
        """A row's accepted drafts and the target's own token; that is an alternate where one is
        right, and one more token follows.
        """
        sequence_id = row.state.sequence_id
        if not targets:
            return RowResult(sequence_id, [])
        if len(targets) == 1:  # of many rows on a GPU all that follows would be felt
            return RowResult(sequence_id, [targets[0]])
        ids = row.draft_ids
        accepted = len(ids) if self.accepts_all else num_accepted(ids, targets[: len(ids) + 1])
        row.taken = row.alternate(accepted, targets[accepted])
        token_ids = [*ids[:accepted], targets[accepted]]
        if row.taken is not None:
            token_ids.append(targets[row.sources(accepted + 2)[-1]])
        drafts = tuple(self._records(row, accepted))
        return RowResult(sequence_id=sequence_id, token_ids=token_ids, drafts=drafts)

    def _records(self, row: Row, accepted: int) -> list[ExitRecord]:
        """What happened to a row's drafts and alternates, those first that were accepted."""
        drafts = [
            self._record(draft, place, accepted=place < accepted)
            for place, draft in enumerate(row.drafts)
        ]
        if not row.alternates:
            return drafts
        taken = [self._record(row.taken, accepted, accepted=True)] if row.taken is not None else []
        others = [
            self._record(alternate, alternate.place, accepted=False)
            for alternate in row.alternates
            if alternate is not row.taken
        ]
        return [*drafts[:accepted], *taken, *drafts[accepted:], *others]

    def _record(self, draft: Draft | Alternate, place: int, *, accepted: bool) -> ExitRecord:
        index = draft.exit_index
        exit_layer = LOOKED_UP if index is None else self._exit_layers[index]
        return ExitRecord(draft.token_id, exit_layer, draft.confidence, accepted, place)


def _states_at(hidden: Tensor, places: Sequence[int]) -> Tensor:
    """Some of the states [T, E]; as they are where all are wanted in their order, as of most steps
    that only decode.
    """
    if len(places) == hidden.shape[0] and places == list(range(len(places))):
        return hidden
    return _gather(hidden, places)


def _gather(hidden: Tensor, places: Sequence[int]) -> Tensor:
    """Some of the states [T, E]."""
    return hidden.index_select(0, upload(places, torch.int64, hidden.device))


def _newest_states(
    rows: Sequence[Row], results: Sequence[RowResult], firsts: Sequence[int], last_hidden: Tensor
) -> dict[int, Tensor]:
    """By row with new tokens, the state [E] that its newest one was chosen from.

    Args:
        firsts: Of every row, its first pending token's index in last_hidden [P, E].
    """
    places = {
        index: firsts[index] + row.sources(len(result.token_ids))[-1]
        for index, (row, result) in enumerate(zip(rows, results, strict=True))
        if result.token_ids
    }
    # Copies: what the step computed need not outlive it.
    if len(places) <= 1:
        return {index: last_hidden[place].clone() for index, place in places.items()}
    return dict(zip(places, _gather(last_hidden, list(places.values())), strict=True))


def _with_logprobs(
    rows: Sequence[Row], results: list[RowResult], firsts: Sequence[int], logits: Tensor
) -> list[RowResult]:
    """Results with the log-probabilities that their rows want.

    Args:
        firsts: Of every row, its first pending token's index in logits [P, V].
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
            completed[index] = _failed(rows[index], _NO_RESULT)
        else:
            completed[index] = replace(completed[index], logprobs=tuple(logprobs))
    return completed


def _known_states(
    index: int, row: Row, places: Mapping[TokenRef, int], hidden: Tensor
) -> Tensor | None:
    """States of a row's known tokens, where something is asked of its prompt."""
    if not wants_reading(row.plan, row.state):
        return None
    positions = range(row.plan.start, row.plan.start + row.plan.num_tokens)
    return _gather(hidden, [places[TokenRef(index, position)] for position in positions])


def _without_broken_prompts(
    rows: Sequence[Row], refs: Sequence[TokenRef], hidden: Tensor, results: list[RowResult]
) -> list[RowResult]:
    """Results, with an error where an unfinished prompt is no numbers, before others share its KV.

    The last token computed has read all before it, so it tells for all of them.
    """
    last = {
        ref.row: place
        for place, ref in enumerate(refs)
        if not rows[ref.row].plan.is_decoding and ref.position == rows[ref.row].first_pending
    }
    if not last:
        return results
    are_sound = _gather(hidden, list(last.values())).isfinite().all(dim=-1).tolist()
    broken = {row for row, is_sound in zip(last, are_sound, strict=True) if not is_sound}
    return [
        replace(result, error="the model's states are not numbers", is_corrupt=True)
        if row in broken
        else result
        for row, result in enumerate(results)
    ]


def _without_choice(
    rows: Sequence[Row], results: Sequence[RowResult], firsts: Sequence[int], are_nan: Tensor
) -> list[RowResult]:
    """Results, with an error in the place of tokens one of which is -1.

    Args:
        firsts: Of every row, its first pending token's index among all [P], and their end.
        are_nan: [P] bool, whether there is a NaN among a token's logits.
    """
    mine = map(slice, firsts, firsts[1:])
    return [
        _without_token(row, is_nan=bool(are_nan[share].any())) if -1 in result.token_ids else result
        for row, result, share in zip(rows, results, mine, strict=True)
    ]


def _failed(row: Row, error: str) -> RowResult:
    return RowResult(sequence_id=row.state.sequence_id, token_ids=[], error=error)


def _corrupt(row: Row) -> RowResult:
    return replace(_failed(row, _NOT_NUMBERS), is_corrupt=True)


def _without_token(row: Row, *, is_nan: bool) -> RowResult:
    """A row that has no choice among its tokens, and why."""
    structure = row.state.structure
    if is_nan:
        return _corrupt(row)
    if structure is None:
        return _failed(row, _NOT_NUMBERS)  # by its own wishes: see `processors`
    if structure.error is not None:
        return replace(_failed(row, structure.error), is_dead_end=structure.is_too_slow)
    return replace(_failed(row, _DEAD_END), is_dead_end=True)
