"""`bench serve` against a server around a fake engine, and its figures on made-up outcomes."""

import json
from math import inf

import httpx
import pytest
from fake_engine import FakeEngine
from live_server import fake_app, serving

from benchmarks.serve import _counters
from benchmarks.serve_client import Call, Outcome, send
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--metric-percentiles 200", "should be numbers from 0 to 100"),
        ("--metric-percentiles 50,x", "should be numbers from 0 to 100"),
        ("--output-len 0", "should be at least 1"),
        ("--random-input-len 0", "should be at least 1"),
        ("--num-prompts 0", "should be at least 1"),
        ("--num-warmups -1", "should be at least 0"),
        ("--max-concurrency 0", "should be at least 1"),
        ("--request-rate 0", "should be more than 0"),
        ("--request-rate nan", "should be a finite number"),
        ("--burstiness 0", "should be more than 0"),
        ("--temperature -1", "should be at least 0"),
        ("--extra-body []", "should be a JSON object"),
        ("--extra-body {", "is no JSON"),
        ("--goodput ttft", "should be ttft:MS"),
        ("--goodput ttft:x", "should be a number"),
        ("--base-url localhost:8000", "should be like http://127.0.0.1:8000"),
        ("--base-url http://host:port", "should be like http://127.0.0.1:8000"),
        ("--dataset-path /nope", "serve: /nope: No such file"),
        ("--dataset-path /x --dataset-name random", "--dataset-path is for --dataset-name prompts"),
        ("--save-detailed", "--save-detailed needs --save-result or --result-filename"),
    ],
)
def test_what_could_not_be_measured_is_refused_before_anything_is_sent(capsys, flags, message):
    try:
        status = bench("http://127.0.0.1:9", *flags.split())
    except SystemExit as refused:
        status = refused.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_a_key_that_is_asked_for_is_named(capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(fake_app(FakeEngine(), api_key=["k"])) as url:
        assert bench(url) == 2
        assert "taken from the variable OPENAI_API_KEY" in capsys.readouterr().err
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        assert bench(f"{url}/v1/", "--num-prompts", "1", "--output-len", "2") == 0


async def test_a_server_that_is_gone_has_no_counters():
    async with httpx.AsyncClient(base_url="http://127.0.0.1:9") as client:
        assert await _counters(client) == {}


def test_failed_requests_are_told_apart(capsys):
    with serving(fake_app(FakeEngine(failure=RuntimeError("broken")))) as url:
        assert bench(url, "--num-prompts", "2", "--num-warmups", "0") == 1
    assert "2 failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("events", "text", "error"),
    [
        ('data:{"choices":[{"text":"a"}],"error":null}\n\ndata:[DONE]\n\n', "a", None),
        ('data: {"choices": [{"text": "a"}]}\n\n', "a", "the stream ended before [DONE]"),
        ('data: {"error": {"message": "broken"}}\n\n', "", "broken"),
        ("data: {", "", "not a stream as OpenAI's: JSONDecodeError"),
        ('data: {"object": "x"}\n\n', "", "not a stream as OpenAI's: KeyError: 'choices'"),
    ],
)
async def test_a_stream_of_another_server_is_read_or_counted_as_failed(events, text, error):
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=events))
    async with httpx.AsyncClient(base_url="http://x", transport=transport) as client:
        outcome = await send(client, Call(path="/v1/completions", body={}))

    assert outcome.text == text
    assert str(error) in str(outcome.error)


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
