"""`adadecode bench fuzz`: does the server handle malformed requests correctly?

Every request must be answered, or its connection closed, in time. The only 5xx answers allowed are
those of overload and deadlines. Errors must come in the API's envelope and not show internals such
as tracebacks. A harmless request that is sent in between, the canary, must always get the same
answer. The exit status is 1 if anything went wrong; `--first N --requests 1` sends case N alone.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

from benchmarks.flags import server_address
from benchmarks.fuzz_answers import Answer, troubles_of
from benchmarks.fuzz_cases import Case, Route, make_case, routes_of
from benchmarks.own_server import add_server_flags, ready_server
from benchmarks.verdict import verdict
from training.progress import ProgressReport

_HANGS_AFTER_S = 60.0
_PATIENCE_S = 0.3  # wait for an answer to an incomplete request, then end the sending side
_CANARY_EVERY = 200
_MOST_SHOWN = 10
_FLAGS = ("--max-model-len", "128", "--request-timeout", "30")  # valid requests stay short


@dataclass(slots=True, kw_only=True)
class FuzzReport:
    """The outcome of a fuzzing run."""

    requests: int = 0
    duration_s: float = 0.0
    by_kind: Counter[str] = field(default_factory=Counter)
    by_status: Counter[str] = field(default_factory=Counter)  # "closed": there was no answer
    canaries: int = 0
    slowest_s: float = 0.0
    findings: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether there were requests and nothing was wrong."""
        return not self.findings and self.requests > 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("model", metavar="MODEL", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument(
        "--base-url", type=server_address, metavar="URL", help="a running server (one of its own)"
    )
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="number of the first case (%(default)s)"
    )
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of all cases (%(default)s)"
    )
    add_server_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: if the numbers make no sense or the server has ended.
    """
    if args.requests < 1 or args.concurrency < 1:
        raise ValueError("--requests and --concurrency should be positive")
    report = asyncio.run(_measure(args))
    print(_format(report))
    if args.json:
        args.json.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    return 0 if report.is_clean else 1


async def _measure(args: argparse.Namespace) -> FuzzReport:
    if args.base_url:
        return await _Fuzzer(args, args.base_url).run()
    async with ready_server([args.model, *_FLAGS, *args.serve_flag]) as (server, _):
        report = await _Fuzzer(args, server.url).run()
        server.require_alive()
        return report


class _Fuzzer:
    """Sends cases and checks the answers."""

    def __init__(self, args: argparse.Namespace, url: str) -> None:
        self.report = FuzzReport()
        self._args = args
        address = urlsplit(url)
        self._address = address.hostname or "127.0.0.1", address.port or 80
        self._routes: list[Route] = []
        self._paths: list[str] = []
        self._next = args.first

    async def run(self) -> FuzzReport:
        """Send all cases, with canaries in between."""
        started = time.monotonic()
        document = json.loads((await self._get("/openapi.json")).body)
        self._routes = routes_of(document, self._args.model)
        self._paths = sorted(document["paths"])
        canary = await self._canary()
        last = self._args.first + self._args.requests
        with ProgressReport("fuzz", self._args.requests, "requests") as progress:
            while self._next < last:
                until = min(last, self._next + _CANARY_EVERY)
                clients = (self._send_cases(until, progress) for _ in range(self._args.concurrency))
                await asyncio.gather(*clients)
                self.report.canaries += 1
                answer = await self._canary()
                if answer != canary:
                    self._note(f"before case {until}: the canary says {answer!r}, not {canary!r}")
        self.report.duration_s = time.monotonic() - started
        return self.report

    async def _send_cases(self, until: int, progress: ProgressReport) -> None:
        while self._next < until:
            case = make_case(self._args.seed, self._next, self._routes, self._paths)
            self._next += 1
            started = time.monotonic()
            try:
                answer = await asyncio.wait_for(self._exchange(case), _HANGS_AFTER_S)
            except TimeoutError:
                self._note(f"{_name(case)} hangs")
            else:
                for trouble in troubles_of(case, answer):
                    self._note(f"{_name(case)} {trouble}")
                self.report.by_status[str(answer.status or "closed")] += 1
            self.report.requests += 1
            self.report.by_kind[case.kind] += 1
            self.report.slowest_s = max(self.report.slowest_s, time.monotonic() - started)
            progress.update(self.report.requests)

    async def _exchange(self, case: Case) -> Answer:
        """Send all bytes and read until the connection ends.

        If a case is not a whole request, the sending side is closed after a while.
        """
        reader, writer = await asyncio.open_connection(*self._address)
        received = bytearray()
        with suppress(OSError):  # it may close before all is sent
            writer.write(case.data)
            await writer.drain()
            if not case.is_http:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PATIENCE_S):
                        await _read(reader, received)
                if writer.can_write_eof():
                    writer.write_eof()
            await _read(reader, received)
        writer.close()
        return Answer.parse(bytes(received))

    async def _get(self, path: str) -> Answer:
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        return await self._exchange(Case(-1, "fields", head))

    async def _canary(self) -> object:
        """Return the answer to a harmless request, and the status of /health."""
        body = {"model": self._args.model, "prompt": "A canary", "max_tokens": 8, "temperature": 0}
        content = json.dumps(body).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        ).encode()
        answer = await self._exchange(Case(-1, "fields", head + content))
        health = await self._get("/health")
        text = json.loads(answer.body)["choices"] if answer.status == 200 else answer.body
        return answer.status, text, health.status

    def _note(self, finding: str) -> None:
        self.report.findings.append(finding)


async def _read(reader: asyncio.StreamReader, received: bytearray) -> None:
    while data := await reader.read(1 << 16):
        received += data


def _name(case: Case) -> str:
    line, _, rest = case.data.partition(b"\r\n")
    body = rest.partition(b"\r\n\r\n")[2]
    return f"case {case.number} ({case.kind}): {line[:60]!r} {body[:300]!r}"


def _format(report: FuzzReport) -> str:
    def counts(counter: Counter[str]) -> str:
        return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))

    def shown(findings: Sequence[str]) -> list[str]:
        more = len(findings) - _MOST_SHOWN
        return [*findings[:_MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])]

    lines = [
        f"{'requests':<16} {report.requests} in {report.duration_s:.0f} s",
        f"{'kinds':<16} {counts(report.by_kind)}",
        f"{'answers':<16} {counts(report.by_status)}",
        f"{'canaries':<16} {report.canaries}",
        f"{'slowest answer':<16} {report.slowest_s:.1f} s",
        f"{'findings':<16} {len(report.findings)}",
    ]
    return "\n".join([*lines, *shown(report.findings), verdict(report.is_clean)])
