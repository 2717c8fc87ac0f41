"""When a real server loses its worker, its clients see a pause and get the same text."""

import argparse
import asyncio
import os
import signal

import httpx
import pytest

from benchmarks import faults
from benchmarks.own_server import ready_server
from benchmarks.serve_client import Call, send

pytestmark = [pytest.mark.torch, pytest.mark.model, pytest.mark.slow]

MODEL = "smollm2-135m-instruct"
TEXT = "Rain falls on the hills, and the river carries it to the sea. " * 15


def call(index: int) -> Call:
    """Return a greedy or sampled request; the last one has a structure to follow."""
    structure = {"response_format": {"type": "json_object"}} if index == 3 else {}
    return Call(
        path="/v1/chat/completions",
        body={
            "model": MODEL,
            "messages": [{"role": "user", "content": f"Count from {index}."}],
            "max_tokens": 48,
            "temperature": 0.8 * (index % 2),
            "seed": index,
            "ignore_eos": True,
            **structure,
        },
    )


async def read_prompts(client: httpx.AsyncClient) -> list[object]:
    """Request the scores of a long text, and its embedding."""
    prompt = {"model": MODEL, "prompt": TEXT, "max_tokens": 0, "echo": True, "logprobs": 1}
    scores, embedding = await asyncio.gather(
        client.post("/v1/completions", json=prompt, timeout=60),
        client.post("/v1/embeddings", json={"model": MODEL, "input": TEXT}, timeout=60),
    )
    return [scores.json()["choices"], embedding.json()["data"]]


async def test_a_stopped_worker_costs_a_pause_and_no_token() -> None:
    flags = [MODEL, "--heartbeat-timeout", "3", "--sse-keep-alive-interval", "1"]
    async with ready_server(flags) as (server, client):
        calls = [call(index) for index in range(4)]
        expected = await asyncio.gather(*(send(client, each) for each in calls))
        expected_of_prompts = await read_prompts(client)
        streams = [asyncio.create_task(send(client, each)) for each in calls]
        await asyncio.sleep(0.6)
        reading = asyncio.create_task(read_prompts(client))
        await asyncio.sleep(0.1)
        pid = server.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        while (await client.get("/ready")).status_code == 200:
            await asyncio.sleep(0.05)
        assert (await client.get("/ready")).json() == {"status": "recovering"}
        assert (await client.get("/health")).status_code == 200
        late = await send(client, calls[0])  # is queued, not refused
        outcomes = await asyncio.gather(*streams)
        assert await reading == expected_of_prompts
        assert server.worker_pid not in (None, pid)
    for outcome, right in zip([*outcomes, late], [*expected, expected[0]], strict=True):
        assert outcome.error is None
        assert outcome.text == right.text


def test_no_stream_notices_two_kills() -> None:
    parser = argparse.ArgumentParser()
    faults.add_arguments(parser)
    flags = ["--kills", "2", "--longest-pause", "1", "--concurrency", "3", "--max-tokens", "24"]
    args = parser.parse_args(flags)
    assert faults.run(args) == 0
