"""The figures of a load test, named as in vLLM's result files, and its table."""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean, median, pstdev
from typing import Any

from benchmarks.serve_client import Outcome

_COUNTER = re.compile(r"^([a-z_:]+_total)(\{[^}]*\})? (\S+)$", re.MULTILINE)
_POSITION = re.compile(r'position="(\d+)"')
_SPEC = "vllm:spec_decode_num_"
METRICS = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token (excl. 1st token)",
    "itl": "Inter-token Latency",
    "e2el": "End-to-end Latency",
}
Counters = Mapping[str, float]


def read_counters(text: str) -> dict[str, float]:
    """Parse the counters of a Prometheus text, summed over all labels but the draft position."""
    counters: dict[str, float] = {}
    for name, labels, value in _COUNTER.findall(text):
        position = _POSITION.search(labels)
        key = f"{name}[{position[1]}]" if position else name
        counters[key] = counters.get(key, 0.0) + float(value)
    return counters


def latency_figures(outcomes: Sequence[Outcome], percentiles: Sequence[float]) -> dict[str, float]:
    """Return mean_ttft_ms, median_ttft_ms, std_ttft_ms, p99_ttft_ms and so on for all metrics."""
    values = {
        "ttft": [each.ttft_s for each in outcomes],
        "tpot": [tpot for each in outcomes if (tpot := each.tpot_s) is not None],
        "itl": [itl for each in outcomes for itl in each.itls_s],
        "e2el": [each.latency_s for each in outcomes],
    }
    figures: dict[str, float] = {}
    for metric, seconds in values.items():
        milliseconds = sorted(1000 * each for each in seconds) or [0.0]
        figures[f"mean_{metric}_ms"] = fmean(milliseconds)
        figures[f"median_{metric}_ms"] = median(milliseconds)
        figures[f"std_{metric}_ms"] = pstdev(milliseconds)
        for percentile in percentiles:
            figures[f"p{percentile:g}_{metric}_ms"] = percentile_of(milliseconds, percentile)
    return figures


def throughput_figures(
    outcomes: Sequence[Outcome], duration_s: float, goodput: Mapping[str, float]
) -> dict[str, float | None]:
    """Return requests and tokens per second and, with objectives, the goodput.

    Args:
        goodput: Objectives: the most milliseconds by metric (ttft, tpot, e2el). Goodput counts the
            requests that meet all of them.
    """
    num_input = sum(each.num_input_tokens for each in outcomes)
    num_output = sum(each.num_output_tokens for each in outcomes)
    good = sum(_meets(each, goodput) for each in outcomes)
    return {
        "duration": duration_s,
        "completed": len(outcomes),
        "total_input_tokens": num_input,
        "total_output_tokens": num_output,
        "request_throughput": len(outcomes) / duration_s,
        "request_goodput": good / duration_s if goodput else None,
        "output_throughput": num_output / duration_s,
        "total_token_throughput": (num_input + num_output) / duration_s,
    }


def draft_figures(before: Counters, after: Counters) -> dict[str, Any]:
    """Return the acceptance figures of the test, or none if the server does not count drafts."""
    drafts = _grown(f"{_SPEC}drafts_total", before, after)
    drafted = _grown(f"{_SPEC}draft_tokens_total", before, after)
    accepted = _grown(f"{_SPEC}accepted_tokens_total", before, after)
    if not drafts or not drafted:
        return {}
    prefix = f"{_SPEC}accepted_tokens_per_pos_total["
    positions = sorted(int(key[len(prefix) : -1]) for key in after if key.startswith(prefix))
    return {
        "spec_decode_acceptance_rate": 100 * accepted / drafted,
        "spec_decode_acceptance_length": 1 + accepted / drafts,
        "spec_decode_num_drafts": int(drafts),
        "spec_decode_draft_tokens": int(drafted),
        "spec_decode_accepted_tokens": int(accepted),
        "spec_decode_per_position_acceptance_rates": [
            _grown(f"{prefix}{position}]", before, after) / drafts for position in positions
        ],
    }


def server_figures(
    before: Counters, after: Counters, num_requests: int, duration_s: float
) -> dict[str, float]:
    """Return what the server process spent besides its worker; empty without the counters for it.

    `server_cpu_ms_per_request` and `server_cpu_ms_per_token` are the server process's CPU time per
    request and per output token; `server_gap_ms_per_step` is the wall time per step in which no
    step was computed.
    """
    cpu_s = _grown("process_cpu_seconds_total", before, after)
    steps = _grown("adadecode:steps_total", before, after)
    tokens = _grown("vllm:generation_tokens_total", before, after)
    if not (cpu_s and steps and tokens and num_requests):
        return {}
    worker_s = _grown("adadecode:worker_seconds_total", before, after)
    return {
        "server_cpu_ms_per_request": 1000 * cpu_s / num_requests,
        "server_cpu_ms_per_token": 1000 * cpu_s / tokens,
        "server_gap_ms_per_step": 1000 * (duration_s - worker_s) / steps,
        "worker_ms_per_step": 1000 * worker_s / steps,
    }


def format_figures(figures: Mapping[str, Any], percentiles: Sequence[float]) -> str:
    """Format the figures like the table of `vllm bench serve`."""
    lines = ["============ Serving Benchmark Result ============"]
    for key, label in _LABELS.items():
        value = figures.get(key)
        if value is not None:
            lines.append(_line(f"{label}:", value))
    for metric, title in METRICS.items():
        lines.append(f"{title:-^50}")
        short = metric.upper()
        lines.append(_line(f"Mean {short} (ms):", figures[f"mean_{metric}_ms"]))
        lines.append(_line(f"Median {short} (ms):", figures[f"median_{metric}_ms"]))
        lines += [
            _line(f"P{each:g} {short} (ms):", figures[f"p{each:g}_{metric}_ms"])
            for each in percentiles
        ]
    for title, labels in (("Speculative Decoding", _DRAFT_LABELS), ("Server", _SERVER_LABELS)):
        rows = [_line(f"{label}:", figures[key]) for key, label in labels.items() if key in figures]
        if rows:
            lines += [f"{title:-^50}", *rows]
    return "\n".join([*lines, "=" * 50])


_LABELS = {
    "completed": "Successful requests",
    "failed": "Failed requests",
    "max_concurrency": "Maximum request concurrency",
    "request_rate": "Request rate configured (RPS)",
    "duration": "Benchmark duration (s)",
    "total_input_tokens": "Total input tokens",
    "total_output_tokens": "Total generated tokens",
    "request_throughput": "Request throughput (req/s)",
    "request_goodput": "Request goodput (req/s)",
    "output_throughput": "Output token throughput (tok/s)",
    "total_token_throughput": "Total Token throughput (tok/s)",
}
_DRAFT_LABELS = {
    "spec_decode_acceptance_rate": "Acceptance rate (%)",
    "spec_decode_acceptance_length": "Acceptance length",
    "spec_decode_num_drafts": "Drafts",
    "spec_decode_draft_tokens": "Draft tokens",
    "spec_decode_accepted_tokens": "Accepted tokens",
}
_SERVER_LABELS = {
    "server_cpu_ms_per_request": "Server CPU per request (ms)",
    "server_cpu_ms_per_token": "Server CPU per output token (ms)",
    "server_gap_ms_per_step": "Time between steps (ms)",
    "worker_ms_per_step": "Worker time per step (ms)",
}


def _line(label: str, value: float | str) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<40}{shown:<10}"


def _grown(name: str, before: Counters, after: Counters) -> float:
    return after.get(name, 0.0) - before.get(name, 0.0)


def _meets(outcome: Outcome, goodput: Mapping[str, float]) -> bool:
    seconds = {"ttft": outcome.ttft_s, "tpot": outcome.tpot_s or 0.0, "e2el": outcome.latency_s}
    return all(1000 * seconds[metric] <= most for metric, most in goodput.items())


def percentile_of(ordered: Sequence[float], percentile: float) -> float:
    """Return a percentile of sorted values, interpolated linearly between the two nearest."""
    place = (len(ordered) - 1) * percentile / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
