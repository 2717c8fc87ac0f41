"""Many clients at once on the default model.

Each gets the text that it would get alone, and clients that disconnect leave nothing behind. A
quarter of the requests are also sent alone for comparison; `make full` sends all of them.
"""

import asyncio
import json
import random
import re

import httpx
import pytest
from full_size import FULL_SIZE

pytestmark = [pytest.mark.torch, pytest.mark.model, pytest.mark.slow]

MODEL = "smollm2-135m-instruct"
TOPICS = ("rain", "bread", "trains", "bees", "maps", "violins", "salt", "bridges")
TIMEOUT = httpx.Timeout(300.0)


def body(index: int) -> dict[str, object]:
    """Return a request of random length, greedy or sampled, with or without early exits."""
    choose = random.Random(index)
    return {
        "model": MODEL,
        "messages": [
            {
                "role": "user",
                "content": f"Write about {choose.choice(TOPICS)}. " * choose.randint(1, 6),
            }
        ],
        "max_tokens": choose.randint(4, 40),
        "temperature": choose.choice([0.0, 0.8]),
        "seed": index,
        "early_exit": {"enabled": choose.random() < 0.8},
    }


async def streamed_text(client: httpx.AsyncClient, request: dict[str, object]) -> tuple[str, str]:
    """Return the text of a stream and its finish reason."""
    text, reasons = "", []
    async with client.stream(
        "POST", "/v1/chat/completions", json={**request, "stream": True}
    ) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk
            for choice in chunk["choices"]:
                text += choice["delta"].get("content") or ""
                reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert len(reasons) == 1, "every stream ends exactly once"
    return text, reasons[0]


async def gauge(client: httpx.AsyncClient, name: str) -> float:
    text = (await client.get("/metrics")).text
    match = re.search(rf"^{re.escape(name)}\{{.*\}} (\S+)$", text, re.MULTILINE)
    assert match is not None, f"no metric {name}"
    return float(match.group(1))


async def test_64_streams_get_the_text_each_gets_alone(real_server_url: str) -> None:
    limits = httpx.Limits(max_connections=80)
    async with httpx.AsyncClient(
        base_url=real_server_url, timeout=TIMEOUT, limits=limits
    ) as client:
        requests = [body(index) for index in range(64)]
        together = await asyncio.gather(*(streamed_text(client, r) for r in requests))
        pairs = list(zip(requests, together, strict=True))
        for request, (text, reason) in pairs if FULL_SIZE else pairs[::4]:
            answer = (await client.post("/v1/chat/completions", json=request)).json()
            choice = answer["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == (text, reason)


async def test_200_disconnects_leave_every_block_free(real_server_url: str) -> None:
    async with httpx.AsyncClient(base_url=real_server_url, timeout=TIMEOUT) as client:

        async def leave_early(index: int) -> None:
            request = {**body(index), "max_tokens": 2000, "stream": True}
            async with client.stream("POST", "/v1/chat/completions", json=request) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        break

        for start in range(0, 200, 40):
            leavers = (leave_early(index) for index in range(start, start + 40))
            tasks = [asyncio.create_task(leaver) for leaver in leavers]
            done, waiting = await asyncio.wait(tasks, timeout=20)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            for task in done:
                task.result()
        for _ in range(100):
            if await gauge(client, "vllm:num_requests_running") == 0:
                break
            await asyncio.sleep(0.2)
        assert await gauge(client, "vllm:num_requests_running") == 0
        assert await gauge(client, "vllm:num_requests_waiting") == 0
        assert await gauge(client, "vllm:kv_cache_usage_perc") == 0
        text, _ = await streamed_text(client, body(1))
        assert text
