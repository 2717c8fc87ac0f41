"""The engine's steps without the waiting: schedule → (execute) → commit → render → retire.

Synchronous and single-threaded: no asyncio, no locks. The caller has the plans executed.
"""

from collections.abc import Sequence as Many
from copy import deepcopy
from dataclasses import dataclass

from engine.config import SchedulerConfig
from engine.detokenizer import Detokenizer
from engine.errors import EngineOverloaded, WorkerLost
from engine.limits import ModelLimits
from engine.plain_texts import PlainTexts, TokenSpeller
from engine.plan import StepPlan, StepResult
from engine.request import (
    DraftFigures,
    FinishReason,
    GenerationRequest,
    RequestOutput,
    Structure,
)
from engine.scheduler import Committed, Scheduler
from engine.sequence import OUTGROWN, Sequence
from engine.stats import EngineStats
from engine.trace import token_traces


@dataclass(frozen=True, slots=True)
class _Open:
    """A request that has not had its last output."""

    sequence: Sequence
    detokenizer: Detokenizer


def _is_going_on(sequence: Sequence) -> bool:
    """Whether a sequence's tokens are streamed and more are to come."""
    return sequence.request.output_interval > 0 and not sequence.is_finished


def _ends_unseen(sequence: Sequence) -> bool:
    """Whether the last token ended the output and is to be left out of its text."""
    ended_by_token = sequence.finish_reason is FinishReason.STOP
    return ended_by_token and not sequence.request.sampling.include_stop_str_in_output


class EngineCore:
    """Turns requests into step plans, and the plans' results into outputs."""

    def __init__(
        self, config: SchedulerConfig, limits: ModelLimits, tokenizer: TokenSpeller, num_layers: int
    ) -> None:
        self._scheduler = Scheduler(config, limits)
        self._plain_texts = PlainTexts(tokenizer)
        self._num_layers = num_layers
        self._open: dict[str, _Open] = {}
        self._stats = EngineStats()

    @property
    def num_open(self) -> int:
        """The number of requests that have not had their last output."""
        return len(self._open)

    def stats(self) -> EngineStats:
        """Return a copy of the totals and the present state."""
        stats, scheduler = deepcopy(self._stats), self._scheduler
        stats.num_running, stats.num_waiting = scheduler.num_running, scheduler.num_waiting
        stats.num_blocks, stats.num_blocks_used = scheduler.num_blocks, scheduler.num_blocks_used
        stats.preemptions_total = scheduler.num_preemptions
        stats.prefix_cache_queries_total = scheduler.num_prefix_queries
        stats.prefix_cache_hits_total = scheduler.num_prefix_hits
        stats.prompt_tokens_computed_total = scheduler.num_prefix_misses
        return stats

    def check_room(self, num_requests: int, num_tokens: int) -> None:
        """See `Scheduler.check_room`; refused requests are counted."""
        try:
            self._scheduler.check_room(num_requests, num_tokens)
        except EngineOverloaded:
            self._stats.refused_total += num_requests
            raise

    def add_all(self, requests: Many[GenerationRequest]) -> None:
        """Queue all of the requests, or none of them.

        Raises:
            RequestError: One of them could never run.
            EngineOverloaded: The queue is full.
        """
        ids = {request.request_id for request in requests}
        is_unique = len(ids) == len(requests) and ids.isdisjoint(self._open)
        assert is_unique, "request ids are unique among open requests"
        try:
            sequences = self._scheduler.add_all(requests)
        except EngineOverloaded:
            self._stats.refused_total += len(requests)
            raise
        for request, sequence in zip(requests, sequences, strict=True):
            detokenizer = Detokenizer(self._plain_texts, request.sampling, request.prompt_token_ids)
            self._open[request.request_id] = _Open(sequence, detokenizer)
            self._stats.prompt_tokens_total += len(request.prompt_token_ids)

    def has_started(self, request_id: str) -> bool:
        """Whether a request has ever run; True for one that is no longer open."""
        entry = self._open.get(request_id)
        return entry is None or entry.sequence.queue_s is not None

    def abort(self, request_id: str) -> None:
        """End a request without a further output; unknown ids are ignored."""
        entry = self._open.pop(request_id, None)
        if entry is not None:
            self._scheduler.abort(entry.sequence)
            self._count_finished(entry.sequence)

    def schedule(self) -> StepPlan | None:
        """Return the next plan, or None if there is nothing to do."""
        return self._scheduler.schedule()

    def commit(self, plan: StepPlan, result: StepResult) -> list[Committed]:
        """Apply a step's result; finished sequences give up their blocks."""
        committed = self._scheduler.commit(plan, result)
        self._stats.count_step(plan, result, [item.result for item in committed])
        return committed

    def render(
        self, committed: Many[Committed], *, one_by_one: bool = False
    ) -> list[RequestOutput]:
        """Make outputs of what was committed; a stop string found here ends its sequence.

        Args:
            committed: What `commit` returned.
            one_by_one: Give each token of a step its own output, unless the step was the request's
                last or the request wants all later tokens at once.
        """
        outputs = []
        for item in committed:
            sequence = item.sequence
            if not item.num_new_tokens and sequence.finish_reason is None:
                continue
            entry = self._open.get(sequence.request.request_id)
            if entry is None or entry.sequence is not sequence:
                continue  # aborted since the commit
            if one_by_one and item.num_new_tokens > 1 and _is_going_on(sequence):
                outputs += self._render_each(entry, item)
            else:
                outputs.append(self._render(entry, item, item.num_new_tokens))
        return outputs

    def structures(self) -> set[Structure]:
        """Return the structures that open requests have to follow."""
        asked = (entry.sequence.request.sampling.structure for entry in self._open.values())
        return {structure for structure in asked if structure is not None}

    def lose_worker(self, plan: StepPlan | None, loss: WorkerLost) -> list[RequestOutput]:
        """Preempt everything, because the worker is gone: the next one computes it again.

        Everything that was committed must have been rendered.

        Args:
            plan: The step that was in flight; None: the worker was idle.
            loss: How the worker ended.

        Returns:
            Last outputs of requests that are ended because they kill workers.
        """
        error = "this request crashes every worker that computes it"
        guilty = self._scheduler.lose_worker(plan, loss)
        return [self._end(sequence, FinishReason.ERROR, error) for sequence in guilty]

    def adapt(self, limits: ModelLimits) -> list[RequestOutput]:
        """Adapt to a new worker with another number of blocks; see `Scheduler.adapt`.

        Returns:
            Last outputs of requests that are too long for it.
        """
        outgrown = self._scheduler.adapt(limits)
        return [self._end(sequence, FinishReason.ERROR, OUTGROWN) for sequence in outgrown]

    def end_all(self, reason: FinishReason, error: str | None = None) -> list[RequestOutput]:
        """End every open request; returns a last output, without text, for each."""
        # Also those that have finished: their last tokens are not rendered, so they are incomplete.
        return [self._end(entry.sequence, reason, error) for entry in list(self._open.values())]

    def check(self) -> None:
        """Assert the invariants that hold between steps."""
        self._scheduler.check()
        assert self._open or not self._scheduler.num_blocks_used, "blocks are held for nobody"

    def _render_each(self, entry: _Open, item: Committed) -> list[RequestOutput]:
        """Return an output for each token of a step, up to a stop string."""
        outputs: list[RequestOutput] = []
        for end in range(1, item.num_new_tokens + 1):
            outputs.append(self._render(entry, item, end, start=end - 1))
            if entry.sequence.is_finished:
                break
        return outputs

    def _render(self, entry: _Open, item: Committed, end: int, *, start: int = 0) -> RequestOutput:
        """Return the output for tokens [start, end) of a step."""
        sequence, result, detokenizer = item.sequence, item.result, entry.detokenizer
        num_later = item.num_new_tokens - end
        token_ids = visible = tuple(result.token_ids[start:end])
        if _ends_unseen(sequence):
            visible = token_ids[:-1]
        text = detokenizer.push(visible, sequence.finish_reason is not None)
        if detokenizer.found_stop is not None:
            stop = detokenizer.found_stop
            num_surplus = len(token_ids) - stop.num_tokens_kept + num_later
            self._stop_at_string(sequence, stop.text, num_surplus)
            token_ids, num_later = token_ids[: stop.num_tokens_kept], 0
        kept = len(token_ids)
        self._stats.generation_tokens_total += kept
        output = self._output(sequence, text, token_ids, num_later)
        if result.logprobs:
            output.logprobs = tuple(result.logprobs[start : start + kept])
        if sequence.request.early_exit.return_trace:
            traces = token_traces(result, start + kept, self._num_layers)
            output.trace = tuple(traces[start:])
        if sequence.prompt_logprobs and output.num_output_tokens == kept:  # it is the first
            output.prompt_logprobs = tuple(sequence.prompt_logprobs)
        if sequence.finish_reason is not None:
            self._close(sequence, output)
        return output

    def _stop_at_string(self, sequence: Sequence, stop: str, num_surplus: int) -> None:
        """End a sequence at a stop string, whatever else ended it in the same step."""
        sequence.drop_tokens_after(sequence.num_output_tokens - num_surplus)
        sequence.finish(FinishReason.STOP, stop)
        self._scheduler.retire(sequence)

    def _end(self, sequence: Sequence, reason: FinishReason, error: str | None) -> RequestOutput:
        """End a sequence from outside; returns its last output, which has no text."""
        sequence.finish(reason, error=error)
        self._scheduler.retire(sequence)
        output = self._output(sequence)
        self._close(sequence, output)
        return output

    def _output(
        self,
        sequence: Sequence,
        text: str = "",
        token_ids: tuple[int, ...] = (),
        num_later: int = 0,
    ) -> RequestOutput:
        return RequestOutput(
            sequence.request.request_id,
            text,
            token_ids,
            sequence.num_prompt_tokens,
            sequence.num_output_tokens - num_later,
            sequence.num_cached_tokens,
        )

    def _close(self, sequence: Sequence, last: RequestOutput) -> None:
        """Say in a finished sequence's last output how it ended, and forget the sequence."""
        last.finish_reason = sequence.finish_reason
        last.stop_reason = sequence.stop_reason
        last.embedding = sequence.embedding
        last.queue_s = sequence.queue_s or 0.0
        last.num_preemptions = sequence.num_preemptions
        last.draft_figures = self._figures(sequence)
        last.error = sequence.error
        self._open.pop(sequence.request.request_id, None)
        self._count_finished(sequence)

    def _figures(self, sequence: Sequence) -> DraftFigures:
        policy = sequence.request.early_exit.under(self._stats.policy)
        return sequence.figures(policy)

    def _count_finished(self, sequence: Sequence) -> None:
        assert sequence.finish_reason is not None
        self._stats.finished_total[sequence.finish_reason] += 1
