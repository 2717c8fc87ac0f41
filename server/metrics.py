"""Prometheus metrics, under vLLM's names where it has them, else under `adadecode:`.

With vLLM's names, existing dashboards and tools work. The engine's counts are read at each scrape
(`engine_collector`); what the observer sees of requests is counted here.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Literal, TypeAlias, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    ProcessCollector,
    generate_latest,
)

from server.engine_collector import LABELS, TOKEN_COUNT_BUCKETS, EngineCollector
from server.histogram import Histogram
from server.records import GenerationRecord, RequestRecord
from server.service import InferenceService

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
# A token bucket (its rate and size) limits how often the text is written: that takes 10 ms of a
# thread that all scrapers share, and a scraper asks only every few seconds.
_TEXTS_PER_S = 5.0
_MOST_TEXTS_AT_ONCE = 50.0
_MODES = ("non_streaming", "streaming")
_OUTCOMES = ("no_tool_call", "tool_call")
_CHOICE_BUCKETS = (1.0, 2.0, 5.0, 10.0, 20.0, 128.0)
_PREEMPTION_BUCKETS = (0.0, 1.0, 2.0, 5.0, 10.0, 100.0)

ChatApi: TypeAlias = Literal["chat_completions", "responses"]


class ServerMetrics:
    """All metrics of one application."""

    def __init__(self, service: InferenceService) -> None:
        self._registry = CollectorRegistry()
        self._label_values = (service.model_names[0], "0")
        self._text = b""
        self._texts_left = _MOST_TEXTS_AT_ONCE
        self._last_asked_s = time.monotonic()
        self._renderer = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._engine = EngineCollector(service, self._label_values)
        self._registry.register(self._engine)
        ProcessCollector(registry=self._registry)  # this process: CPU, memory, open files
        seconds, counts = self._seconds, self._counts
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "Time to the first token.", _FIRST_TOKEN_BUCKETS
        )
        self._between_tokens = self._histogram(
            "inter_token_latency_seconds",
            "Time between tokens; tokens that came together share it.",
            _BETWEEN_TOKENS_BUCKETS,
        )
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds",
            "A request's mean time per output token after the first.",
            _BETWEEN_TOKENS_BUCKETS,
        )
        self._e2e = seconds("e2e_request_latency_seconds", "Time from request to last token.")
        self._queue = seconds("request_queue_time_seconds", "Time a request waited to run.")
        self._prefill = seconds(
            "request_prefill_time_seconds", "Time from the first step to the first token."
        )
        self._decode = seconds(
            "request_decode_time_seconds", "Time from the first token to the last."
        )
        self._inference = seconds(
            "request_inference_time_seconds", "Time from the first step to the last token."
        )
        self._prompt_tokens = counts("request_prompt_tokens", "Prompt tokens of a request.")
        self._output_tokens = counts("request_generation_tokens", "Output tokens of a request.")
        self._max_output_tokens = counts(
            "request_max_num_generation_tokens", "Output tokens of a request's longest choice."
        )
        self._params_max_tokens = counts(
            "request_params_max_tokens", "A request's limit of output tokens."
        )
        self._params_n = self._histogram("request_params_n", "A request's n.", _CHOICE_BUCKETS)
        self._preemptions = self._histogram(
            "request_num_preemptions", "Preemptions of a request.", _PREEMPTION_BUCKETS
        )
        self._unknown_fields = Counter(
            "adadecode:unknown_request_fields",
            "Unknown fields of requests.",
            LABELS,
            registry=self._registry,
        ).labels(*self._label_values)
        self._call_parsers = Counter(
            "vllm:tool_call_parser_invocations",
            "Choices whose output was searched for tool calls, by whether there were any.",
            (*LABELS, "mode", "outcome", "request_type"),
            registry=self._registry,
        )
        for labels in product(_MODES, _OUTCOMES, get_args(ChatApi)):
            self._call_parsers.labels(*self._label_values, *labels)  # export zeros from the start

    def call_counter(self, api: ChatApi, *, is_streamed: bool) -> Callable[[bool], None]:
        """Return a function to call with whether a choice, searched for tool calls, has any."""

        def count(has_called: bool) -> None:
            mode, outcome = _MODES[is_streamed], _OUTCOMES[has_called]
            self._call_parsers.labels(*self._label_values, mode, outcome, api).inc()

        return count

    def count_unknown_fields(self, count: int) -> None:
        """Count a request's unknown fields."""
        self._unknown_fields.inc(count)

    async def text(self) -> bytes:
        """Return all metrics in Prometheus' text format; scrapes too frequent get the last text.

        The text is written on a thread: with thousands of connections open, counting them alone
        would hold up the event loop for as long as dozens of refusals take.
        """
        now = time.monotonic()
        earned = (now - self._last_asked_s) * _TEXTS_PER_S
        self._texts_left = min(_MOST_TEXTS_AT_ONCE, self._texts_left + earned)
        self._last_asked_s = now
        if self._texts_left >= 1 or not self._text:
            self._texts_left -= 1
            self._engine.look()
            self._text = await asyncio.get_running_loop().run_in_executor(
                self._renderer, generate_latest, self._registry
            )
        return self._text

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._renderer.shutdown()

    def count_first_token(self, seconds: float) -> None:
        """Count a generation's first token, which came `seconds` after its start."""
        self._first_token.observe(seconds)

    def count_more_tokens(self, num_tokens: int, seconds: float) -> None:
        """Count tokens that came together, `seconds` after the ones before."""
        self._between_tokens.observe(seconds / num_tokens, num_tokens)

    def count_generation(self, seen: GenerationRecord) -> None:
        """Count a generation that came to its natural end."""
        # Without a token, all the time was spent on the prompt.
        first = seen.end_s if seen.first_token_s is None else seen.first_token_s
        last = seen.end_s if seen.first_token_s is None else seen.last_token_s
        self._e2e.observe(seen.end_s)
        self._queue.observe(seen.queue_s)
        self._prefill.observe(max(0.0, first - seen.queue_s))
        self._decode.observe(last - first)
        self._inference.observe(max(0.0, last - seen.queue_s))
        if seen.num_output_tokens > 1:
            self._per_token.observe((last - first) / (seen.num_output_tokens - 1))
        self._prompt_tokens.observe(len(seen.request.prompt_token_ids))
        self._output_tokens.observe(seen.num_output_tokens)
        self._params_max_tokens.observe(seen.request.sampling.max_tokens)
        self._preemptions.observe(seen.num_preemptions)

    def count_request(self, record: RequestRecord) -> None:
        """Count a request whose last generation has ended."""
        self._params_n.observe(record.num_choices)
        self._max_output_tokens.observe(record.max_output_tokens)

    def _seconds(self, name: str, text: str) -> Histogram:
        return self._histogram(name, text, _REQUEST_BUCKETS)

    def _counts(self, name: str, text: str) -> Histogram:
        return self._histogram(name, text, TOKEN_COUNT_BUCKETS)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(f"vllm:{name}", text, LABELS, self._label_values, buckets)
        self._registry.register(histogram)
        return histogram
