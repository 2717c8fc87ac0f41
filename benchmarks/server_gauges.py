"""Reads from a server's metrics whether it holds requests or KV blocks."""

import asyncio
import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from httpx import AsyncClient

HELD = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
_IDLE_TIMEOUT_S = 120.0


def gauge(text: str, name: str) -> float:
    """Return a value from the text of /metrics.

    Raises:
        ValueError: if there is none of that name.
    """
    match = re.search(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"the server has no metric {name}")
    return float(match.group(1))


async def until_idle(client: "AsyncClient") -> dict[str, float]:
    """Wait until the server holds no request and no KV block, or too long; return the gauges."""
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    while True:
        text = (await client.get("/metrics")).text
        held = {name: gauge(text, name) for name in HELD}
        if not any(held.values()) or time.monotonic() > deadline:
            return held
        await asyncio.sleep(0.2)
