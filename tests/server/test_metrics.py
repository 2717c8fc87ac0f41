"""The names of all metrics, so that what dashboards rely on does not change unnoticed."""

import asyncio
import re
import threading
import time
from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from engine.policy_reason import PolicyReason
from engine.stats import EngineStats
from server.metrics import ServerMetrics

GAUGES = {
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
    "adadecode:is_drafting",
    "adadecode:exit_policy_reason",
    "adadecode:exit_policy_state",
    "adadecode:speedup",
    "adadecode:build_info",
    "adadecode:learned_head_agreement",
}
COUNTERS = {
    "vllm:num_preemptions",
    "vllm:admission_rejections",
    "vllm:prompt_tokens",
    "vllm:prompt_tokens_cached",
    "vllm:prompt_tokens_by_source",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:corrupted_requests",
    "vllm:tool_call_parser_invocations",
    "vllm:generation_tokens",
    "vllm:request_success",
    "vllm:spec_decode_num_drafts",
    "vllm:spec_decode_num_draft_tokens",
    "vllm:spec_decode_num_accepted_tokens",
    "vllm:spec_decode_num_accepted_tokens_per_pos",
    "adadecode:steps",
    "adadecode:worker_seconds",
    "adadecode:exit_draft_tokens",
    "adadecode:exit_accepted_tokens",
    "adadecode:unknown_request_fields",
    "adadecode:learned_head_updates",
    "adadecode:learned_head_adopted",
    "adadecode:learned_head_dropped",
    "adadecode:learned_head_seconds",
}
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_max_num_generation_tokens",
    "vllm:request_params_n",
    "vllm:request_params_max_tokens",
    "vllm:request_num_preemptions",
    "vllm:iteration_tokens_total",
}


@pytest.fixture
def families() -> dict:
    with TestClient(fake_app(FakeEngine())) as client:
        client.post("/v1/completions", json={"model": MODEL, "prompt": "abc", "n": 2})
        text = client.get("/metrics").text
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize(
    ("kind", "names"), [("gauge", GAUGES), ("counter", COUNTERS), ("histogram", HISTOGRAMS)]
)
def test_the_names_are_these(families, kind, names):
    own = {
        name
        for name, family in families.items()
        if name.startswith(("vllm:", "adadecode:")) and family.type == kind
    }

    assert own >= names


def test_every_metric_says_what_it_is(families):
    for family in families.values():
        assert family.documentation, family.name


def test_every_metric_of_ours_names_the_model(families):
    for name, family in families.items():
        if name.startswith(("vllm:", "adadecode:")):
            for sample in family.samples:
                assert sample.labels["model_name"] == MODEL, name


def count(family) -> float:
    return next(each.value for each in family.samples if each.name.endswith("_count"))


def test_a_request_with_two_choices_is_two_generations(families):
    assert count(families["vllm:request_generation_tokens"]) == 2
    assert count(families["vllm:request_queue_time_seconds"]) == 2
    assert count(families["vllm:request_params_n"]) == 1
    longest = families["vllm:request_max_num_generation_tokens"]
    assert [each.value for each in longest.samples if each.name.endswith("_sum")] == [12]


def test_prompt_tokens_come_from_the_cache_or_are_computed():
    engine = FakeEngine()
    stats = EngineStats(prompt_tokens_computed_total=7, prefix_cache_hits_total=5)
    engine.stats = lambda: stats
    with TestClient(fake_app(engine)) as client:
        text = client.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}

    sources = families["vllm:prompt_tokens_by_source"].samples
    assert {each.labels["source"]: each.value for each in sources} == {
        "local_compute": 7,
        "local_cache_hit": 5,
    }


def test_the_policys_state_is_one_of_few(families):
    states = {
        each.labels["state"]: each.value for each in families["adadecode:exit_policy_state"].samples
    }

    assert states == {"drafting": 1, "paused": 0, "no_drafts": 0}


def test_the_policys_reason_is_one_of_those_that_the_help_explains(families):
    family = families["adadecode:exit_policy_reason"]
    reasons = {each.labels["reason"]: each.value for each in family.samples}

    assert reasons == {reason: float(reason == "drafting") for reason in PolicyReason}
    assert all(f"{reason}: " in family.documentation for reason in PolicyReason)


def test_the_servers_own_cpu_time_is_told(families):
    (sample,) = families["process_cpu_seconds"].samples
    assert re.fullmatch("process_cpu_seconds_total", sample.name)
    assert sample.value > 0


def test_who_asks_too_often_gets_what_there_was(monkeypatch):
    texts = []

    def generate(_):
        texts.append(b"text %d" % len(texts))
        return texts[-1]

    monkeypatch.setattr("server.metrics.generate_latest", generate)
    with TestClient(fake_app(FakeEngine(), access_log="none")) as client:
        answers = [client.get("/metrics").text for _ in range(100)]
        assert answers[:50] == [f"text {number}" for number in range(50)], "fresh, now and then"
        assert len(texts) < 90
        time.sleep(0.25)
        assert client.get("/metrics").text == f"text {len(texts) - 1}" != answers[-1]


def test_the_loop_goes_on_while_the_text_is_written(monkeypatch):
    may_end = threading.Event()
    monkeypatch.setattr("server.metrics.generate_latest", lambda _: may_end.wait(10) and b"text")

    async def ask() -> bytes:
        metrics = ServerMetrics(SimpleNamespace(model_names=[MODEL], loaded_model=None))
        asking = asyncio.create_task(metrics.text())
        await asyncio.sleep(0.01)
        may_end.set()
        return await asking

    assert asyncio.run(ask()) == b"text"
