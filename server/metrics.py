"""Prometheus metrics, under vLLM's names where it has them, else under `adadecode:`.

So existing dashboards and tools work. Counts and gauges are read from `EngineStats` when scraped;
latencies are observed here, on the outputs as they pass.
"""

import time
from collections.abc import Iterator
from contextlib import aclosing

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.request import FinishReason
from engine.stats import EngineStats
from server.fan_out import Outputs
from server.service import InferenceService

_LABELS = ("model_name", "engine")
# fmt: off
_FIRST_TOKEN_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,
    0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
)
_BETWEEN_TOKENS_BUCKETS = (
    0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1,
    0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)
_REQUEST_BUCKETS = (
    0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0,
    15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
)
# fmt: on
_TOKEN_COUNT_BUCKETS = tuple(2**power for power in range(18))


class ServerMetrics:
    """All metrics of one application."""

    def __init__(self, service: InferenceService) -> None:
        self._registry = CollectorRegistry()
        self._label_values = (service.model_names[0], "0")
        self._registry.register(_EngineCollector(service, self._label_values))
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "Time to the first token.", _FIRST_TOKEN_BUCKETS
        )
        self._between_tokens = self._histogram(
            "inter_token_latency_seconds",
            "Time between tokens; tokens that came together share it.",
            _BETWEEN_TOKENS_BUCKETS,
        )
        self._request = self._histogram(
            "e2e_request_latency_seconds", "Time from request to last token.", _REQUEST_BUCKETS
        )
        self._prompt_tokens = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", _TOKEN_COUNT_BUCKETS
        )
        self._output_tokens = self._histogram(
            "request_generation_tokens", "Output tokens of a request.", _TOKEN_COUNT_BUCKETS
        )

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    async def observe(self, outputs: Outputs) -> Outputs:
        """Pass a generation's outputs on, timing them."""
        started = previous = time.perf_counter()
        num_seen = 0
        async with aclosing(outputs):
            async for output in outputs:
                now = time.perf_counter()
                num_new = output.num_output_tokens - num_seen
                if num_new and not num_seen:
                    self._first_token.observe(now - started)
                elif num_new:
                    for _ in range(num_new):
                        self._between_tokens.observe((now - previous) / num_new)
                if num_new:
                    previous, num_seen = now, output.num_output_tokens
                if output.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                    self._request.observe(now - started)
                    self._prompt_tokens.observe(output.num_prompt_tokens)
                    self._output_tokens.observe(output.num_output_tokens)
                yield output

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}", text, _LABELS, buckets=buckets, registry=self._registry
        )
        return histogram.labels(*self._label_values)


class _EngineCollector(Collector):
    """The engine's own counts, read at each scrape; nothing while the model loads."""

    def __init__(self, service: InferenceService, label_values: tuple[str, ...]) -> None:
        self._service = service
        self._label_values = label_values

    def describe(self) -> list[Metric]:
        """Nothing: names appear with their first values."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One family per count."""
        model = self._service.loaded_model
        if model is None:
            return
        stats = model.engine.stats()
        yield from self._gauges(stats)
        yield from self._counters(stats)
        yield from self._labelled_counters(stats)

    def _gauges(self, stats: EngineStats) -> Iterator[Metric]:
        used = stats.num_blocks_used / stats.num_blocks if stats.num_blocks else 0.0
        for name, text, value in (
            ("vllm:num_requests_running", "Sequences running.", stats.num_running),
            ("vllm:num_requests_waiting", "Requests waiting.", stats.num_waiting),
            ("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", used),
            ("adadecode:is_drafting", "1 while the exit policy drafts.", int(stats.is_drafting)),
        ):
            family = GaugeMetricFamily(name, text, labels=_LABELS)
            family.add_metric(self._label_values, value)
            yield family

    def _counters(self, stats: EngineStats) -> Iterator[Metric]:
        for name, text, value in (
            ("vllm:num_preemptions", "Preemptions.", stats.preemptions_total),
            ("vllm:prompt_tokens", "Prompt tokens.", stats.prompt_tokens_total),
            ("vllm:generation_tokens", "Output tokens.", stats.generation_tokens_total),
            ("vllm:spec_decode_num_drafts", "Runs of drafts.", stats.drafts_total),
            ("vllm:spec_decode_num_draft_tokens", "Drafts.", stats.draft_tokens_total),
            (
                "vllm:spec_decode_num_accepted_tokens",
                "Accepted drafts.",
                stats.accepted_tokens_total,
            ),
            ("adadecode:steps", "Engine steps.", stats.steps_total),
            ("adadecode:worker_seconds", "Time the worker computed.", stats.worker_time_s_total),
        ):
            family = CounterMetricFamily(name, text, labels=_LABELS)
            family.add_metric(self._label_values, value)
            yield family

    def _labelled_counters(self, stats: EngineStats) -> Iterator[Metric]:
        for name, text, label, values in (
            (
                "vllm:request_success",
                "Requests ended, by how.",
                "finished_reason",
                stats.finished_total,
            ),
            (
                "vllm:spec_decode_num_accepted_tokens_per_pos",
                "Accepted drafts by place in the run.",
                "position",
                dict(enumerate(stats.accepted_per_position)),
            ),
            (
                "adadecode:exit_draft_tokens",
                "Drafts by exit layer.",
                "layer",
                stats.drafted_by_layer,
            ),
            (
                "adadecode:exit_accepted_tokens",
                "Accepted drafts by exit layer.",
                "layer",
                stats.accepted_by_layer,
            ),
        ):
            family = CounterMetricFamily(name, text, labels=(*_LABELS, label))
            for key, value in values.items():
                family.add_metric((*self._label_values, str(key)), value)
            yield family
