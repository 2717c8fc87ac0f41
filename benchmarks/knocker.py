"""A client, in a process of its own, that repeats the same few requests and times them.

Many clients in one event loop keep each other waiting, so that half of what they measure is their
own delay. This one has a plain socket and nothing else to do.
"""

import asyncio
import http.client
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from urllib.parse import urlsplit

_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request to repeat."""

    method: str
    path: str
    body: str | None = None  # JSON


@dataclass(slots=True, kw_only=True)
class Knocks:
    """The outcomes of the requests; times are milliseconds from the request to the whole answer."""

    answers_ms: dict[str, list[float]] = field(default_factory=dict)  # by path
    refusals_ms: list[float] = field(default_factory=list)
    curt: int = 0  # refusals without a Retry-After
    errors: list[str] = field(default_factory=list)


async def knock(url: str, asks: Sequence[Ask], seconds: float) -> Knocks:
    """Send the requests in turn for some seconds, from another process."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return await loop.run_in_executor(pool, _knock, url, asks, seconds)


def _knock(url: str, asks: Sequence[Ask], seconds: float) -> Knocks:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=300)
    knocks = Knocks(answers_ms={ask.path: [] for ask in asks})
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for ask in asks:
            try:
                _try(connection, ask, knocks)
            except (OSError, http.client.HTTPException) as error:
                knocks.errors.append(f"{ask.path}: {error!r}")
                connection.close()
            time.sleep(_PAUSE_S)
    connection.close()
    return knocks


def _try(connection: http.client.HTTPConnection, ask: Ask, knocks: Knocks) -> None:
    """Send one request and add its outcome.

    Raises:
        OSError: if the connection fails.
        http.client.HTTPException: if there is no valid answer.
    """
    headers = {} if ask.body is None else {"Content-Type": "application/json"}
    started = time.perf_counter()
    connection.request(ask.method, ask.path, ask.body, headers)
    response = connection.getresponse()
    response.read()
    taken_ms = 1000 * (time.perf_counter() - started)
    if response.status == 200:
        knocks.answers_ms[ask.path].append(taken_ms)
    elif response.status == 503 and ask.body is not None:
        knocks.refusals_ms.append(taken_ms)
        knocks.curt += not (response.getheader("Retry-After") or "").isdecimal()
    else:
        knocks.errors.append(f"{ask.path}: status {response.status}")
