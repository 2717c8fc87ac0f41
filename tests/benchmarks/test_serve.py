"""`bench serve` against a server around a fake engine, and its figures on made-up outcomes."""

import json
from math import inf

import pytest
from fake_engine import FakeEngine
from live_server import fake_app, serving

from benchmarks.serve_client import Outcome
from benchmarks.serve_figures import (
    draft_figures,
    latency_figures,
    read_counters,
    server_figures,
    throughput_figures,
)
from benchmarks.serve_load import Load
from server.cli import main


def bench(url: str, *flags: str) -> int:
    return main(["bench", "serve", "--base-url", url, "--disable-tqdm", *flags])


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
@pytest.mark.parametrize("dataset", ["prompts", "random"])
def test_results_have_vllms_names(tmp_path, capsys, backend, dataset):
    file = tmp_path / "result.json"
    with serving(fake_app(FakeEngine(), max_request_bytes="1M")) as url:
        status = bench(
            url,
            *("--backend", backend, "--dataset-name", dataset, "--random-input-len", "5"),
            *("--num-prompts", "6", "--output-len", "4", "--max-concurrency", "2"),
            *("--goodput", "ttft:100000", "e2el:100000", "--result-filename", str(file)),
            "--save-detailed",
        )

    shown, result = capsys.readouterr().out, json.loads(file.read_text())
    # The fake model takes up to 256 tokens with ids below 260; other prompts fail and are counted.
    completed = result["completed"]
    assert completed + result["failed"] == 6
    assert status == (1 if result["failed"] else 0)
    assert result["total_output_tokens"] == 4 * completed
    assert result["request_goodput"] == result["request_throughput"]
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for figure in ("mean", "median", "std", "p50", "p90", "p99"):
            assert f"{figure}_{metric}_ms" in result
    assert len(result["ttfts"]) == len(result["errors"]) == 6
    assert f"Successful requests:                    {completed}" in shown
    assert "Mean TTFT (ms):" in shown


def test_nobody_there_is_one_line(capsys):
    assert bench("http://127.0.0.1:9", "--num-prompts", "1") == 2
    assert "no models at http://127.0.0.1:9" in capsys.readouterr().err


def test_failed_requests_are_told_apart(capsys):
    with serving(fake_app(FakeEngine(failure=RuntimeError("broken")))) as url:
        assert bench(url, "--num-prompts", "2", "--num-warmups", "0") == 1
    assert "2 failed" in capsys.readouterr().err


OUTCOMES = [
    Outcome(started_s=0, ttft_s=0.1, latency_s=0.5, itls_s=[0.2, 0.2], num_output_tokens=3,
            num_input_tokens=10),
    Outcome(started_s=0, ttft_s=0.3, latency_s=0.3, num_output_tokens=1, num_input_tokens=10),
]  # fmt: skip


def test_latencies():
    figures = latency_figures(OUTCOMES, (50, 99))

    assert figures["mean_ttft_ms"] == pytest.approx(200)
    assert figures["p99_ttft_ms"] == pytest.approx(298)
    assert figures["mean_tpot_ms"] == pytest.approx(200), "one token has no time after the first"
    assert figures["median_e2el_ms"] == figures["p50_e2el_ms"] == pytest.approx(400)
    assert figures["std_itl_ms"] == 0


def test_throughput_and_goodput():
    figures = throughput_figures(OUTCOMES, 2.0, {"ttft": 200})

    assert figures["request_throughput"] == 1
    assert figures["output_throughput"] == 2
    assert figures["total_token_throughput"] == 12
    assert figures["request_goodput"] == 0.5


METRICS = """# HELP vllm:spec_decode_num_drafts_total Runs of drafts.
vllm:spec_decode_num_drafts_total{{engine="0",model_name="m"}} {drafts}
vllm:spec_decode_num_draft_tokens_total{{engine="0",model_name="m"}} {drafted}
vllm:spec_decode_num_accepted_tokens_total{{engine="0",model_name="m"}} {accepted}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="0"}} {accepted}
process_cpu_seconds_total {cpu}
adadecode:steps_total{{engine="0"}} {steps}
adadecode:worker_seconds_total{{engine="0"}} {worker}
vllm:generation_tokens_total{{engine="0"}} {tokens}
vllm:num_requests_running{{engine="0"}} 3.0
"""


def test_the_servers_counters_are_compared_before_and_after():
    zero = dict.fromkeys(("drafts", "drafted", "accepted", "cpu", "steps", "worker", "tokens"), 1.0)
    before = read_counters(METRICS.format(**zero))
    after = read_counters(
        METRICS.format(drafts=11, drafted=21, accepted=6, cpu=1.5, steps=101, worker=3, tokens=201)
    )

    drafts = draft_figures(before, after)
    assert drafts["spec_decode_acceptance_rate"] == 25
    assert drafts["spec_decode_acceptance_length"] == 1.5
    assert drafts["spec_decode_per_position_acceptance_rates"] == [0.5]
    server = server_figures(before, after, 10, 2.5)
    assert server["server_cpu_ms_per_request"] == 50
    assert server["server_cpu_ms_per_token"] == 2.5
    assert server["server_gap_ms_per_step"] == pytest.approx(5)
    assert draft_figures({}, {}) == server_figures({}, {}, 1, 1.0) == {}


def test_requests_come_at_the_rate_that_was_asked_for():
    delays = list(Load(request_rate=10, burstiness=0.5).delays_s(200))

    assert sum(delays) == pytest.approx(20)
    assert max(delays) > 3 * 0.1, "bursty"
    assert set(Load(request_rate=inf).delays_s(3)) == {0.0}
    assert delays == list(Load(request_rate=10, burstiness=0.5).delays_s(200)), "repeatable"
