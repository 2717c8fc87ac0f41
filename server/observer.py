"""Watches generations pass, on their way from the engine to the answer: times, counts, ends.

What it saw goes to the metrics, to the request's record and, where traces are on, into a span.
"""

import time
from collections.abc import Sequence
from contextlib import aclosing

from engine.request import FinishReason, GenerationRequest, RequestOutput
from server.fan_out import Outputs
from server.metrics import ServerMetrics
from server.records import GenerationRecord, RequestRecord
from server.tracing import Tracer

_WHOLE = (FinishReason.STOP, FinishReason.LENGTH)


class Observer:
    """One per application."""

    def __init__(self, metrics: ServerMetrics, tracer: Tracer | None = None) -> None:
        self._metrics = metrics
        self._tracer = tracer

    def watch(self, outputs: Outputs, request: GenerationRequest, record: RequestRecord) -> Outputs:
        """Pass a generation's outputs on; closing what is returned closes them."""
        record.num_generations += 1
        return self._watch(outputs, request, record)

    def note_refusal(self, requests: Sequence[GenerationRequest], record: RequestRecord) -> None:
        """None of these was let in."""
        record.num_generations += len(requests)
        for request in requests:
            generation = GenerationRecord(request=request, started_at_ns=time.time_ns())
            generation.finish_reason = FinishReason.ERROR
            self._end(generation, record)

    async def _watch(
        self, outputs: Outputs, request: GenerationRequest, record: RequestRecord
    ) -> Outputs:
        generation = GenerationRecord(request=request, started_at_ns=time.time_ns())
        started = time.perf_counter()
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    self._note(generation, output, time.perf_counter() - started)
                    yield output
        except Exception:
            generation.finish_reason = FinishReason.ERROR
            raise
        finally:
            generation.end_s = time.perf_counter() - started
            self._end(generation, record)

    def _note(self, generation: GenerationRecord, output: RequestOutput, now_s: float) -> None:
        num_new = output.num_output_tokens - generation.num_output_tokens
        if num_new > 0:
            if generation.first_token_s is None:
                generation.first_token_s = now_s
                self._metrics.count_first_token(now_s)
            else:
                self._metrics.count_more_tokens(num_new, now_s - generation.last_token_s)
            generation.last_token_s = now_s
            generation.num_output_tokens = output.num_output_tokens
        if output.finish_reason is not None:
            generation.finish_reason = output.finish_reason
            generation.draft_figures = output.draft_figures
            generation.num_cached_tokens = output.num_cached_tokens
            generation.num_preemptions = output.num_preemptions
            generation.queue_s = output.queue_s

    def _end(self, generation: GenerationRecord, record: RequestRecord) -> None:
        record.add(generation)
        if generation.finish_reason in _WHOLE:
            self._metrics.count_generation(generation)
            if len(record.finish_reasons) == record.num_generations:
                self._metrics.count_request(record)
        if self._tracer is not None:
            self._tracer.trace(generation, record)
