"""`adadecode bench traces`: timed requests that share prefixes, are cancelled and sent again.

What corrupts servers is not one odd request but ordinary ones at the wrong moment: a prompt that
shares its first blocks with one that is being cancelled, or that is sent again while its first
attempt is still being removed. Every body is sent alone first, with a cache salt of its own; then
traces of them run in a KV cache too small for all. The exit status is 1 if a finished answer is not
the one that was given alone, a request was lost, or the server still holds anything when idle.

Source: GRIEF, arXiv 2605.11202, for the kind of trace.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.flags import server_address
from benchmarks.own_server import add_server_flags, ready_server
from benchmarks.server_gauges import gauge, until_idle
from benchmarks.verdict import verdict
from training.progress import ProgressReport

if TYPE_CHECKING:
    from httpx import AsyncClient, Response

_BLOCK = 16  # tokens per KV block, the server's default
_BURSTS_MS = (0, 1, 4, 15, 19)  # between the requests of one burst
_PATIENCE_MS = (1, 5, 15, 19, 40, 150, 400)  # before a client leaves
_FLAGS = ("--max-num-seqs", "6", "--max-model-len", "96", "--kv-cache-memory", "5M")
_COUNTERS = ("vllm:num_preemptions_total", "vllm:prefix_cache_hits_total")
_HANGS_AFTER_S = 300.0

# The text and the finish reason of every choice.
Answer = Sequence[tuple[str, str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One request of a trace."""

    at_s: float
    index: int  # index of its body
    is_streamed: bool
    leaves_after_s: float | None = None  # None: the client waits for the answer
    retries_after_s: float | None = None  # after the client has left; None: it does not retry


@dataclass(slots=True, kw_only=True)
class TraceReport:
    """The outcome of all traces."""

    traces: int = 0
    requests: int = 0
    cancelled: int = 0
    retried: int = 0
    finished: int = 0
    wrong: int = 0
    lost: int = 0
    duration_s: float = 0.0
    counters: dict[str, float] = field(default_factory=dict)  # growth of the server's counters
    left_behind: dict[str, float] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether every finished answer was the right one, and nothing was lost or kept."""
        return self.wrong == self.lost == 0 < self.finished and not any(self.left_behind.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("model", metavar="MODEL", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument(
        "--base-url", type=server_address, metavar="URL", help="a running server (one of its own)"
    )
    parser.add_argument("--traces", type=int, default=40, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--bodies", type=int, default=24, metavar="N", help="different requests (%(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of everything random (%(default)s)"
    )
    add_server_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: if the numbers make no sense or the server has ended.
    """
    if args.traces < 1 or args.bodies < 4:
        raise ValueError("--traces should be positive, --bodies at least 4")
    report = asyncio.run(_measure(args))
    print(_format(report))
    if args.json:
        args.json.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    return 0 if report.is_clean else 1


async def _measure(args: argparse.Namespace) -> TraceReport:
    import httpx

    if not args.base_url:
        async with ready_server([args.model, *_FLAGS, *args.serve_flag]) as (_, client):
            return await _Traces(args, client).run()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=args.base_url, timeout=300, limits=limits) as client:
        return await _Traces(args, client).run()


class _Traces:
    """Runs all traces on one server."""

    def __init__(self, args: argparse.Namespace, client: "AsyncClient") -> None:
        self.report = TraceReport()
        self._args = args
        self._client = client
        self._bodies = make_bodies(args.seed, args.bodies, args.model)
        self._expected: list[Answer] = []

    async def run(self) -> TraceReport:
        """Get every body's answer alone, then run the traces."""
        for number, body in enumerate(self._bodies):
            alone = {**body, "cache_salt": f"alone {number}"}
            self._expected.append(await self._ask(alone, is_streamed=False))
        report, started, before = self.report, time.monotonic(), await self._counters()
        with ProgressReport("traces", self._args.traces, "traces") as progress:
            for number in range(self._args.traces):
                events = make_trace(self._args.seed, number, len(self._bodies))
                await asyncio.gather(*(self._play(event, f"trace {number}") for event in events))
                report.traces += 1
                progress.update(report.traces)
        report.left_behind = await until_idle(self._client)
        after = await self._counters()
        report.counters = {name: after[name] - before[name] for name in before}
        report.duration_s = time.monotonic() - started
        return report

    async def _play(self, event: Event, name: str) -> None:
        await asyncio.sleep(event.at_s)
        if event.leaves_after_s is not None:
            if await self._attempt(event, name, event.leaves_after_s):
                return
            self.report.cancelled += 1
            if event.retries_after_s is None:
                return
            await asyncio.sleep(event.retries_after_s)
            self.report.retried += 1
        if not await self._attempt(event, name, _HANGS_AFTER_S):
            self.report.lost += 1
            self.report.findings.append(f"{name}: body {event.index} hangs")

    async def _attempt(self, event: Event, name: str, patience_s: float) -> bool:
        """Send a request and check the answer; return False if there is none in time."""
        import httpx

        report = self.report
        report.requests += 1
        body = self._bodies[event.index]
        try:
            asking = self._ask(body, is_streamed=event.is_streamed)
            answer = await asyncio.wait_for(asking, patience_s)
        except TimeoutError:
            return False
        except (httpx.HTTPError, ValueError, KeyError) as error:
            report.lost += 1
            report.findings.append(f"{name}: body {event.index}: {error!r}")
            return True
        report.finished += 1
        if answer != self._expected[event.index]:
            report.wrong += 1
            expected = self._expected[event.index]
            report.findings.append(f"{name}: body {event.index}: {answer} is not {expected}")
        return True

    async def _ask(self, body: Mapping[str, Any], *, is_streamed: bool) -> Answer:
        """Send a request and return its answer.

        Raises:
            httpx.HTTPError: if the request fails.
            ValueError: if the answer is not valid, or its stream is cut off.
        """
        url = "/v1/completions"
        if not is_streamed:
            response = await self._client.post(url, json=body)
            response.raise_for_status()
            return [(each["text"], each["finish_reason"]) for each in response.json()["choices"]]
        async with self._client.stream("POST", url, json={**body, "stream": True}) as response:
            response.raise_for_status()
            return await _streamed(response, body.get("n", 1))

    async def _counters(self) -> dict[str, float]:
        text = (await self._client.get("/metrics")).text
        return {name: gauge(text, name) for name in _COUNTERS}


def make_bodies(seed: int, count: int, model: str) -> list[dict[str, Any]]:
    """Make request bodies: families that share prefixes which end near block edges, and loners."""
    choose = random.Random(f"{seed}/bodies")
    lengths = [blocks * _BLOCK + offset for blocks in (1, 2, 3) for offset in (-1, 0, 1)]
    prefixes = [_token_ids(choose, choose.choice(lengths)) for _ in range(max(1, count // 6))]
    bodies = []
    for number in range(count):
        is_loner = number % 4 == 3
        begin = _token_ids(choose, 20) if is_loner else choose.choice(prefixes)
        body: dict[str, Any] = {
            "model": model,
            "prompt": begin + _token_ids(choose, choose.choice((0, 1, 2, 5))),
            "max_tokens": choose.choice((1, 4, 12, 40)),
            "temperature": choose.choice((0.0, 0.8)),
            "seed": number,
            "n": choose.choice((1, 1, 1, 2)),
            "early_exit": {"enabled": choose.random() < 0.8},
        }
        if choose.random() < 0.3:
            body["cache_salt"] = choose.choice(("one", "two"))
        bodies.append(body)
    return bodies


def make_trace(seed: int, number: int, num_bodies: int) -> list[Event]:
    """Make a trace: overlapping bursts of requests, some cancelled and most of those retried."""
    choose = random.Random(f"{seed}/trace {number}")
    events, at_s = [], 0.0
    for _ in range(choose.randint(2, 4)):
        favourites = choose.sample(range(num_bodies), 2)
        for _ in range(choose.randint(3, 7)):
            at_s += choose.choice(_BURSTS_MS) / 1000
            leaves = choose.random() < 0.45
            retries = leaves and choose.random() < 0.75
            events.append(
                Event(
                    at_s=at_s,
                    index=choose.choice((*favourites, choose.randrange(num_bodies))),
                    is_streamed=choose.random() < 0.6,
                    leaves_after_s=choose.choice(_PATIENCE_MS) / 1000 if leaves else None,
                    retries_after_s=choose.choice(_BURSTS_MS) / 1000 if retries else None,
                )
            )
        at_s += choose.uniform(0, 0.3)
    return events


def _token_ids(choose: random.Random, count: int) -> list[int]:
    """Choose tokens that every vocabulary has."""
    return [choose.randrange(40, 250) for _ in range(count)]


async def _streamed(response: "Response", num_choices: int) -> Answer:
    texts, reasons = [""] * num_choices, [None] * num_choices
    is_complete = False
    async for line in response.aiter_lines():
        if line == "data: [DONE]":
            is_complete = True
        elif line.startswith("data: "):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                index = choice["index"]
                texts[index] += choice["text"]
                reasons[index] = choice["finish_reason"] or reasons[index]
    if not is_complete:
        raise ValueError("the stream ended before [DONE]")
    return list(zip(texts, reasons, strict=True))


def _format(report: TraceReport) -> str:
    lines = [
        f"{'traces':<16} {report.traces} in {report.duration_s:.0f} s",
        f"{'requests':<16} {report.requests}: {report.finished} finished, {report.cancelled} "
        f"cancelled, {report.retried} of those asked again",
        f"{'wrong':<16} {report.wrong}",
        f"{'lost':<16} {report.lost}",
        *(f"{name.partition(':')[2]:<32} {value:g}" for name, value in report.counters.items()),
        f"{'left behind':<16} {sum(report.left_behind.values()):g}",
    ]
    return "\n".join([*lines, *report.findings[:10], verdict(report.is_clean)])
