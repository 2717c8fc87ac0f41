"""A client that asks again and again and times refusals, in a process of its own.

A crowd of clients in one event loop keeps each other waiting, and what they measure is half their
own delay. This one has a plain socket and nothing else to do.
"""

import asyncio
import http.client
import json
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any
from urllib.parse import urlsplit

_PAUSE_S = 0.02


@dataclass(slots=True, kw_only=True)
class Knocks:
    """What became of its requests."""

    refusals_ms: list[float] = field(default_factory=list)  # from the request to the whole answer
    accepted: int = 0
    curt: int = 0  # refusals that do not say when to come again
    errors: list[str] = field(default_factory=list)


async def knock(url: str, path: str, body: Mapping[str, Any], seconds: float) -> Knocks:
    """Ask for so long, beside whatever this process does."""
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return await loop.run_in_executor(pool, _knock, url, path, json.dumps(body), seconds)


def _knock(url: str, path: str, body: str, seconds: float) -> Knocks:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=300)
    headers, knocks = {"Content-Type": "application/json"}, Knocks()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        started = time.perf_counter()
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            knocks.errors.append(f"knocking: {error!r}")
            connection.close()
            continue
        if response.status == 503:
            knocks.refusals_ms.append(1000 * (time.perf_counter() - started))
            knocks.curt += not (response.getheader("Retry-After") or "").isdecimal()
        elif response.status == 200:
            knocks.accepted += 1
        else:
            knocks.errors.append(f"knocking: status {response.status}")
        time.sleep(_PAUSE_S)
    connection.close()
    return knocks
