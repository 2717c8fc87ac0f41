"""`adadecode bench overload`: thousands of idle connections, then twice what the server can take.

Starts a server with room for few requests and probes /health and /metrics in three phases: with no
other load, with thousands of idle connections, and then while twice as many clients send requests
as can run and wait. Reports how long probes and refusals take for a client in a process of its own
(`benchmarks.knocker`), and how long refusals take for the crowd. The exit status is 1 if an
accepted request was lost or got another text than alone, no request was refused, a refusal had no
Retry-After, or idle connections were closed.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from benchmarks.flags import server_address
from benchmarks.knocker import Ask, knock
from benchmarks.own_server import add_server_flags, ready_server
from benchmarks.serve_client import Call, send
from benchmarks.serve_figures import percentile_of
from benchmarks.verdict import verdict

if TYPE_CHECKING:
    from httpx import AsyncClient

_PROBES = ("/health", "/metrics")
_RETRY_S = 0.2  # sooner than Retry-After says, to keep up the overload
_OPENING_AT_ONCE = 100
_SPARE_FILES = 256
_NUM_TOKENS = 24


@dataclass(slots=True, kw_only=True)
class Phase:
    """The figures of one phase; times are in milliseconds."""

    name: str
    idle_connections: int = 0  # still open at the end of the phase
    probes_ms: dict[str, list[float]] = field(default_factory=dict)
    refusals_ms: list[float] = field(default_factory=list)
    crowds_refusals_ms: list[float] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class OverloadReport:
    """The outcome of all phases."""

    idle_connections: int = 0  # opened
    phases: list[Phase] = field(default_factory=list)
    accepted: int = 0
    lost: int = 0
    wrong: int = 0
    curt: int = 0  # refusals without a Retry-After
    errors: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether all answers were right, some requests were refused, and nothing was lost."""
        are_open = all(phase.idle_connections == self.idle_connections for phase in self.phases)
        has_refused = any(map(_num_refusals, self.phases))
        return (
            self.lost == self.wrong == self.curt == 0 < self.accepted and has_refused and are_open
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("model", metavar="MODEL", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument(
        "--base-url",
        type=server_address,
        metavar="URL",
        help="a running server with these limits (one of its own)",
    )
    parser.add_argument(
        "--idle", type=int, default=5000, metavar="N", help="idle connections (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="(%(default)s)")
    parser.add_argument(
        "--max-num-seqs", type=int, default=4, metavar="N", help="requests that run (%(default)s)"
    )
    parser.add_argument(
        "--max-num-queued-requests",
        type=int,
        default=4,
        metavar="N",
        help="requests that wait (%(default)s)",
    )
    add_server_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: if the numbers make no sense, this process may not open enough files, or the
            server has ended.
    """
    if args.idle < 0 or args.seconds <= 0:
        raise ValueError("--idle and --seconds should be positive")
    _raise_file_limit(args.idle)
    report = asyncio.run(_measure(args))
    print(_format(report))
    if args.json:
        args.json.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    return 0 if report.is_clean else 1


async def _measure(args: argparse.Namespace) -> OverloadReport:
    import httpx

    if args.base_url:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=args.base_url, timeout=300, limits=limits) as client:
            return await _Overload(args, args.base_url, client).run()
    flags = [
        args.model,
        *("--max-num-seqs", str(args.max_num_seqs)),
        *("--max-num-queued-reqs", str(args.max_num_queued_requests)),
        *("--max-connections", str(args.idle + _SPARE_FILES)),
        *("--timeout-keep-alive", str(int(10 * args.seconds) + 600)),
        *args.serve_flag,
    ]
    async with ready_server(flags) as (server, client):
        return await _Overload(args, server.url, client).run()


class _Overload:
    """Puts one server under more and more load."""

    def __init__(self, args: argparse.Namespace, url: str, client: "AsyncClient") -> None:
        self.report = OverloadReport(idle_connections=args.idle)
        self._args = args
        self._url = url
        self._client = client
        self._call = Call(
            path="/v1/completions",
            body={
                "model": args.model,
                "prompt": "Rain falls because",
                "max_tokens": _NUM_TOKENS,
                "temperature": 0,
                "ignore_eos": True,
            },
        )
        self._phase = Phase(name="")

    async def run(self) -> OverloadReport:
        """Run the phases one after the other."""
        alone = await send(self._client, self._call)
        if alone.error is not None:
            raise ValueError(f"failed undisturbed: {alone.error}")
        await self._run_phase("nothing to do", self._knock, [])
        idle = await _open_idle(self._url, self._args.idle)
        await self._run_phase("idle connections", self._knock, idle)
        num_clients = 2 * (self._args.max_num_seqs + self._args.max_num_queued_requests)

        async def crowd() -> None:
            asking = (self._ask(alone.text) for _ in range(num_clients))
            await asyncio.gather(self._knock(beyond=True), *asking)

        await self._run_phase("and twice the load", crowd, idle)
        for connection in idle:
            connection.close()
        self.report.phases[0].idle_connections = self._args.idle  # this phase had none
        return self.report

    async def _run_phase(
        self, name: str, work: Callable[[], Awaitable[None]], idle: "list[_Idle]"
    ) -> None:
        self._phase = Phase(name=name, probes_ms={path: [] for path in _PROBES})
        self._until = time.monotonic() + self._args.seconds
        print(f"{name}: {self._args.seconds:g} s", file=sys.stderr, flush=True)
        await work()
        self._phase.idle_connections = sum(connection.is_open for connection in idle)
        self.report.phases.append(self._phase)

    async def _knock(self, *, beyond: bool = False) -> None:
        """Send probes from another process; if `beyond`, also requests that should be refused."""
        asks = [Ask(method="GET", path=path) for path in _PROBES]
        if beyond:
            body = json.dumps({**self._call.body, "max_tokens": 1})
            asks.append(Ask(method="POST", path=self._call.path, body=body))
        knocks = await knock(self._url, asks, self._args.seconds)
        self._phase.probes_ms = {path: knocks.answers_ms[path] for path in _PROBES}
        self._phase.refusals_ms += knocks.refusals_ms
        self.report.curt += knocks.curt
        self.report.lost += len(knocks.errors)
        self.report.errors += knocks.errors

    async def _ask(self, expected: str) -> None:
        """Send requests as one client that never gives up, until the phase is over."""
        report = self.report
        while time.monotonic() < self._until:
            if not await self._is_refused():
                outcome = await send(self._client, self._call)
                is_refusal = outcome.error is not None and outcome.error.startswith("status 503")
                if outcome.error is None:
                    report.accepted += 1
                    report.wrong += outcome.text != expected
                elif not is_refusal:
                    report.lost += 1
                    report.errors.append(outcome.error)
            await asyncio.sleep(_RETRY_S)

    async def _is_refused(self) -> bool:
        """Request one token without streaming; return whether it is refused, which is timed."""
        started = time.perf_counter()
        body = {**self._call.body, "max_tokens": 1}
        response = await self._client.post(self._call.path, json=body)
        if response.status_code != 503:
            return False
        self._phase.crowds_refusals_ms.append(1000 * (time.perf_counter() - started))
        self.report.curt += not response.headers.get("Retry-After", "").isdecimal()
        return True


class _Idle(asyncio.Protocol):
    """A connection that sends one request and then stays idle."""

    def __init__(self) -> None:
        self.is_open = False
        self.has_answer = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.is_open = True
        transport.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        if not self.has_answer.done():
            self.has_answer.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if not self.has_answer.done():
            self.has_answer.set_result(None)

    def close(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()


async def _open_idle(url: str, count: int) -> list[_Idle]:
    """Open idle connections; each has had one answer."""
    loop = asyncio.get_running_loop()
    host, _, port = url.rpartition("/")[2].partition(":")
    idle: list[_Idle] = []
    for start in range(0, count, _OPENING_AT_ONCE):
        opening = (
            loop.create_connection(_Idle, host, int(port))
            for _ in range(min(_OPENING_AT_ONCE, count - start))
        )
        opened = [protocol for _, protocol in await asyncio.gather(*opening)]
        await asyncio.gather(*(protocol.has_answer for protocol in opened))
        idle += opened
    return idle


def _raise_file_limit(num_connections: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_connections + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise ValueError(
                f"--idle {num_connections}: only {hard} files may be open (ulimit -Hn)"
            )
        with suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _format(report: OverloadReport) -> str:
    names = ("/health", "/metrics", "refusals", "seen by the crowd")
    lines = [f"{'ms, p50 / p99 / max':<20}" + "".join(f" {name:>22}" for name in names)]
    for phase in report.phases:
        columns = [*phase.probes_ms.values(), phase.refusals_ms, phase.crowds_refusals_ms]
        cells = "".join(f" {_times(column):>22}" for column in columns)
        lines.append(f"{phase.name:<20}{cells}")
    lines += [
        f"idle connections: {report.phases[-1].idle_connections} of {report.idle_connections} open",
        f"refused: {sum(map(_num_refusals, report.phases))}, of those without "
        f"Retry-After: {report.curt}",
        f"accepted: {report.accepted}, lost: {report.lost}, wrong: {report.wrong}",
    ]
    return "\n".join([*lines, *report.errors[:5], verdict(report.is_clean)])


def _num_refusals(phase: Phase) -> int:
    return len(phase.refusals_ms) + len(phase.crowds_refusals_ms)


def _times(values: list[float]) -> str:
    if not values:
        return "-"
    times = sorted(values)
    return f"{percentile_of(times, 50):.1f} / {percentile_of(times, 99):.1f} / {times[-1]:.1f}"
