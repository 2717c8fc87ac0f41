"""Watches generations: their times, token counts and ends.

What is seen goes to the metrics, to the request's record and, where traces are on, into a span.
"""

import time
from collections.abc import Sequence

from engine.request import FinishReason, GenerationRequest, RequestOutput
from server.metrics import ServerMetrics
from server.records import GenerationRecord, RequestRecord
from server.tracing import Tracer

_WHOLE = (FinishReason.STOP, FinishReason.LENGTH)


class Observer:
    """Watches all generations of one application."""

    def __init__(self, metrics: ServerMetrics, tracer: Tracer | None = None) -> None:
        self._metrics = metrics
        self._tracer = tracer

    def watch(
        self, index: int, request: GenerationRequest, record: RequestRecord
    ) -> "GenerationWatch":
        """Begin to watch a generation, one of those counted in `record.num_generations`."""
        seen = GenerationRecord(index=index, request=request, started_at_ns=time.time_ns())
        return GenerationWatch(self._metrics, self._tracer, seen, record)

    def note_refusal(self, requests: Sequence[GenerationRequest], record: RequestRecord) -> None:
        """Record that the engine refused these requests."""
        for index, request in enumerate(requests):
            self.watch(index, request, record).end(FinishReason.ERROR)


class GenerationWatch:
    """Watches one generation: it is told of every output and of the end."""

    def __init__(
        self,
        metrics: ServerMetrics,
        tracer: Tracer | None,
        seen: GenerationRecord,
        record: RequestRecord,
    ) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._record = record
        self._seen = seen
        self._started = time.perf_counter()

    def note(self, output: RequestOutput) -> None:
        """Take note of the next output."""
        seen = self._seen
        num_new = output.num_output_tokens - seen.num_output_tokens
        if num_new > 0:
            now_s = time.perf_counter() - self._started
            if seen.first_token_s is None:
                seen.first_token_s = now_s
                self._metrics.count_first_token(now_s)
            else:
                self._metrics.count_more_tokens(num_new, now_s - seen.last_token_s)
            seen.last_token_s = now_s
            seen.num_output_tokens = output.num_output_tokens
        if output.finish_reason is not None:
            seen.finish_reason = output.finish_reason
            seen.draft_figures = output.draft_figures
            seen.num_cached_tokens = output.num_cached_tokens
            seen.num_preemptions = output.num_preemptions
            seen.queue_s = output.queue_s

    def end(self, reason: FinishReason | None = None) -> None:
        """Record the end: for `reason` if given, else as its last output said, else as aborted."""
        seen, record = self._seen, self._record
        seen.end_s = time.perf_counter() - self._started
        seen.finish_reason = reason or seen.finish_reason
        record.add(seen)
        if seen.finish_reason in _WHOLE:
            self._metrics.count_generation(seen)
            if len(record.finish_reasons) == record.num_generations:
                self._metrics.count_request(record)
        if self._tracer is not None:
            self._tracer.trace(seen, record)
