"""The engine's own counts as Prometheus metrics, read from `EngineStats` at each scrape.

They are read in the event loop, where they change (`look`), and exported on whatever thread writes
the text (`collect`).
"""

from collections.abc import Iterator, Mapping

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from engine import EngineInfo
from engine.plan import Learning
from engine.policy_reason import PolicyReason
from engine.stats import EngineStats
from server.service import InferenceService
from server.version import VERSION

LABELS = ("model_name", "engine")
TOKEN_COUNT_BUCKETS = tuple(float(2**power) for power in range(18))
_POLICY_STATES = ("drafting", "paused", "no_drafts")


class EngineCollector(Collector):
    """Exports the engine's counts of one application; nothing while the model loads."""

    def __init__(self, service: InferenceService, label_values: tuple[str, ...]) -> None:
        self._service = service
        self._label_values = label_values
        self._seen: tuple[EngineStats, EngineInfo] | None = None  # at the last look

    def look(self) -> None:
        """Take note of the engine's present state; to be called in the event loop."""
        model = self._service.loaded_model
        self._seen = None if model is None else (model.engine.stats(), model.info)

    def describe(self) -> list[Metric]:
        """Declare nothing in advance: names appear with their first values."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield one family per metric."""
        if self._seen is None:
            return
        stats, info = self._seen
        yield from self._gauges(stats)
        yield self._waiting(stats)
        yield from self._states(stats, info)
        yield from self._counters(stats)
        yield from self._labelled_counters(stats)
        yield from self._learning(stats.learning)
        yield self._step_tokens(stats.steps_by_num_tokens)

    def _gauges(self, stats: EngineStats) -> Iterator[Metric]:
        used = stats.num_blocks_used / stats.num_blocks if stats.num_blocks else 0.0
        for name, text, value in (
            ("vllm:num_requests_running", "Sequences running.", stats.num_running),
            ("vllm:num_requests_waiting", "Requests waiting.", stats.num_waiting),
            ("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", used),
            (
                "adadecode:is_drafting",
                "1 while the exit policy drafts.",
                int(stats.policy.is_drafting),
            ),
            (
                "adadecode:speedup",
                "Speed of recent steps relative to estimated plain decoding; 1 if none drafted.",
                stats.policy.speedup,
            ),
        ):
            family = GaugeMetricFamily(name, text, labels=LABELS)
            family.add_metric(self._label_values, value)
            yield family

    def _waiting(self, stats: EngineStats) -> Metric:
        family = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason",
            "Requests waiting, by reason; capacity: waiting for others to end.",
            labels=(*LABELS, "reason"),
        )
        family.add_metric((*self._label_values, "capacity"), stats.num_waiting)
        return family

    def _states(self, stats: EngineStats, info: EngineInfo) -> Iterator[Metric]:
        """Yield gauges that are 1 for the state or facts named in their labels."""
        state = "drafting" if stats.policy.is_drafting else "paused"
        state = state if info.max_draft_tokens else "no_drafts"
        policy = GaugeMetricFamily(
            "adadecode:exit_policy_state",
            "1 for the state the exit policy is in; paused: drafting does not pay at present.",
            labels=(*LABELS, "state"),
        )
        for name in _POLICY_STATES:
            policy.add_metric((*self._label_values, name), int(name == state))
        yield policy
        reasons = GaugeMetricFamily(
            "adadecode:exit_policy_reason",
            "1 for the reason of the exit policy's state. "
            + " ".join(f"{each}: {each.text}." for each in PolicyReason),
            labels=(*LABELS, "reason"),
        )
        for each in PolicyReason:
            reasons.add_metric((*self._label_values, each), int(each is stats.policy.reason))
        yield reasons
        for name, text, facts in (
            (
                "vllm:cache_config",
                "The KV cache.",
                {"block_size": info.block_size, "num_gpu_blocks": info.num_blocks},
            ),
            (
                "adadecode:build",
                "The server and its engine.",
                {"version": VERSION, "backend": info.backend, "device": info.device},
            ),
        ):
            family = GaugeMetricFamily(f"{name}_info", text, labels=(*LABELS, *facts))
            family.add_metric((*self._label_values, *map(str, facts.values())), 1)
            yield family

    def _step_tokens(self, steps_by_num_tokens: Mapping[int, int]) -> Metric:
        family = HistogramMetricFamily(
            "vllm:iteration_tokens_total",
            "Tokens computed per step, without drafts.",
            labels=LABELS,
        )
        buckets = [
            (f"{bound}", float(_count_until(bound, steps_by_num_tokens)))
            for bound in TOKEN_COUNT_BUCKETS
        ]
        buckets.append(("+Inf", float(sum(steps_by_num_tokens.values()))))
        total = sum(tokens * steps for tokens, steps in steps_by_num_tokens.items())
        family.add_metric(self._label_values, buckets, total)
        return family

    def _counters(self, stats: EngineStats) -> Iterator[Metric]:
        for name, text, value in (
            ("vllm:num_preemptions", "Preemptions.", stats.preemptions_total),
            ("adadecode:worker_restarts", "Lost workers replaced.", stats.worker_restarts_total),
            (
                "adadecode:recovery_seconds",
                "Time without a worker after a loss.",
                stats.recovery_time_s_total,
            ),
            ("vllm:admission_rejections", "Requests refused: full queue.", stats.refused_total),
            ("vllm:prompt_tokens", "Prompt tokens.", stats.prompt_tokens_total),
            (
                "vllm:prompt_tokens_cached",
                "Prompt tokens found in the prefix cache, not computed.",
                stats.prefix_cache_hits_total,
            ),
            (
                "vllm:corrupted_requests",
                "Requests that failed because the model computed NaN or infinity.",
                stats.corrupted_total,
            ),
            (
                "vllm:prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
                stats.prefix_cache_queries_total,
            ),
            (
                "vllm:prefix_cache_hits",
                "Prompt tokens found in the prefix cache.",
                stats.prefix_cache_hits_total,
            ),
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
            family = CounterMetricFamily(name, text, labels=LABELS)
            family.add_metric(self._label_values, value)
            yield family

    def _labelled_counters(self, stats: EngineStats) -> Iterator[Metric]:
        for name, text, label, values in (
            (
                "vllm:request_success",
                "Finished requests, by finish reason.",
                "finished_reason",
                stats.finished_total,
            ),
            (
                "vllm:prompt_tokens_by_source",
                "Prompt tokens of requests that started to run: computed, or found in the cache.",
                "source",
                {
                    "local_compute": stats.prompt_tokens_computed_total,
                    "local_cache_hit": stats.prefix_cache_hits_total,
                },
            ),
            (
                "vllm:spec_decode_num_accepted_tokens_per_pos",
                "Accepted drafts by position in the run.",
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
            family = CounterMetricFamily(name, text, labels=(*LABELS, label))
            for key, value in values.items():
                family.add_metric((*self._label_values, str(key)), value)
            yield family

    def _learning(self, learning: Learning) -> Iterator[Metric]:
        """Yield the figures of exit heads that learn; zeros where they do not."""
        for name, text, value in (
            ("updates", "Training updates of exit heads.", learning.num_updates),
            ("adopted", "Learned exit heads put into service.", learning.num_adopted),
            ("dropped", "Learned exit heads dropped because they did worse.", learning.num_dropped),
            ("seconds", "Time the worker spent on learning.", learning.seconds),
        ):
            counter = CounterMetricFamily(f"adadecode:learned_head_{name}", text, labels=LABELS)
            counter.add_metric(self._label_values, value)
            yield counter
        agreement = GaugeMetricFamily(
            "adadecode:learned_head_agreement",
            "Share of held-out drafts that exit heads were right about in the latest trial.",
            labels=(*LABELS, "heads"),
        )
        for kind, share in (
            ("shipped", learning.shipped_agreement),
            ("serving", learning.serving_agreement),
            ("candidate", learning.candidate_agreement),
        ):
            agreement.add_metric((*self._label_values, kind), share)
        yield agreement


def _count_until(bound: float, counts: Mapping[int, int]) -> int:
    """Return how many of the counted values are at most `bound`."""
    return sum(count for value, count in counts.items() if value <= bound)
