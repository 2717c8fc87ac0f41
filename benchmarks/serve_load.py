"""Schedules the requests of a load test: at a rate with a given burstiness, or all at once, with a
limit on how many run at a time.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from benchmarks.serve_client import Call, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The rate and the concurrency of the requests."""

    request_rate: float = inf  # requests per second
    burstiness: float = 1.0  # 1: Poisson; below: burstier; above: more even
    max_concurrency: int | None = None
    seed: int = 0

    def delays_s(self, num_requests: int) -> Iterator[float]:
        """Yield the seconds to wait before each request, gamma-distributed with the exact rate."""
        if self.request_rate == inf:
            yield from (0.0 for _ in range(num_requests))
            return
        draw = random.Random(self.seed)
        delays = [
            draw.gammavariate(self.burstiness, 1 / (self.request_rate * self.burstiness))
            for _ in range(num_requests)
        ]
        total = sum(delays)
        scale = num_requests / self.request_rate / total if total else 1.0
        yield from (delay * scale for delay in delays)


async def run_load(
    load: Load,
    calls: Sequence[Call],
    send: Callable[[Call], Awaitable[Outcome]],
    on_done: Callable[[], object],
) -> list[Outcome]:
    """Send every call; return the outcomes in the order of the calls."""
    free = asyncio.Semaphore(load.max_concurrency or len(calls))

    async def take_turn(call: Call) -> Outcome:
        async with free:
            outcome = await send(call)
        on_done()
        return outcome

    tasks = []
    for call, delay_s in zip(calls, load.delays_s(len(calls)), strict=True):
        await asyncio.sleep(delay_s)
        tasks.append(asyncio.create_task(take_turn(call)))
    return await asyncio.gather(*tasks)
