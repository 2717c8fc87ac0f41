"""OpenTelemetry traces: a span per generation, with the attributes that vLLM's have.

The packages are an extra (`tracing` in pyproject.toml) and are imported only when traces were asked
for.
"""

from typing import TYPE_CHECKING, Any

from engine.request import FinishReason
from server.records import GenerationRecord, RequestRecord
from server.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

TRACE_CONTEXT_HEADERS = ("traceparent", "tracestate")
_NANOSECONDS = 1e9


class TracingUnavailable(Exception):
    """Traces were asked for, but their packages are not installed."""

    def __init__(self) -> None:
        super().__init__(
            "--otlp-traces-endpoint needs OpenTelemetry: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http"
        )


class Tracer:
    """Makes spans and sends them in batches, from a thread of its own."""

    def __init__(self, exporter: "SpanExporter", model_name: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        names = {"service.name": "adadecode-server", "service.version": VERSION}
        self._provider = TracerProvider(
            # The environment's OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
            resource=Resource(names).merge(Resource.create()),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("adadecode.server", VERSION)
        self._propagator = TraceContextTextMapPropagator()
        self._model_name = model_name

    def trace(self, generation: GenerationRecord, record: RequestRecord) -> None:
        """Make the span of a generation that has ended; a child of the client's, if it sent one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        span = self._tracer.start_span(
            "llm_request",
            context=self._propagator.extract(record.trace_context),
            kind=SpanKind.SERVER,
            start_time=generation.started_at_ns,
            attributes=self._attributes(generation, record),
        )
        if generation.finish_reason is FinishReason.ERROR:
            span.set_status(Status(StatusCode.ERROR))
        span.end(generation.started_at_ns + int(generation.end_s * _NANOSECONDS))

    def close(self) -> None:
        """Send what is left, which takes a while if nobody receives it."""
        self._provider.shutdown()

    def _attributes(self, generation: GenerationRecord, record: RequestRecord) -> dict[str, Any]:
        request, figures = generation.request, generation.draft_figures
        attributes: dict[str, Any] = {
            "gen_ai.request.id": request.request_id,
            "gen_ai.request.n": record.num_choices,
            "gen_ai.request.max_tokens": request.sampling.max_tokens,
            "gen_ai.request.temperature": request.sampling.temperature,
            "gen_ai.request.top_p": request.sampling.top_p,
            "gen_ai.response.model": self._model_name,
            "gen_ai.response.finish_reasons": [str(generation.finish_reason)],
            "gen_ai.usage.num_sequences": record.num_generations,
            "gen_ai.usage.prompt_tokens": len(request.prompt_token_ids),
            "gen_ai.usage.completion_tokens": generation.num_output_tokens,
            "gen_ai.latency.time_in_queue": generation.queue_s,
            "gen_ai.latency.e2e": generation.end_s,
            "adadecode.http_request_id": record.request_id,
            "adadecode.num_cached_tokens": generation.num_cached_tokens,
            "adadecode.num_preemptions": generation.num_preemptions,
        }
        first = generation.first_token_s
        if first is not None:
            attributes |= {
                "gen_ai.latency.time_to_first_token": first,
                "gen_ai.latency.time_in_model_prefill": first - generation.queue_s,
                "gen_ai.latency.time_in_model_decode": generation.last_token_s - first,
                "gen_ai.latency.time_in_model_inference": generation.last_token_s
                - generation.queue_s,
            }
        if figures is not None:
            attributes |= {
                "adadecode.num_draft_tokens": figures.num_draft_tokens,
                "adadecode.num_accepted_tokens": figures.num_accepted_tokens,
            }
        return attributes


def make_tracer(endpoint: str | None, model_name: str) -> Tracer | None:
    """Make a tracer that sends to an OTLP endpoint over HTTP; None without an endpoint.

    Raises:
        TracingUnavailable: OpenTelemetry is not installed.
    """
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return Tracer(OTLPSpanExporter(endpoint=endpoint), model_name)
    except ImportError:
        raise TracingUnavailable from None
