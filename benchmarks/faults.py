"""`adadecode bench faults`: kill the worker under load, again and again; does any stream notice?

Starts its own server, sends every request once undisturbed, then keeps streams open that repeat
them while the worker is killed (SIGKILL) at random moments. The exit status is 1 if a stream was
lost, a text changed, or /health failed.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import TYPE_CHECKING

from benchmarks.own_server import OwnServer, add_server_flags, ready_server, until_recovered
from benchmarks.prompts import choose_prompts
from benchmarks.serve_client import Call, Outcome, send
from benchmarks.serve_figures import percentile_of
from benchmarks.verdict import verdict
from training.progress import ProgressReport

if TYPE_CHECKING:
    from httpx import AsyncClient


@dataclass(slots=True, kw_only=True)
class FaultReport:
    """The effects of the kills on the streams."""

    kills: int = 0
    streams: int = 0  # streams that ended
    disturbed: int = 0  # streams that were open during at least one kill
    lost: int = 0
    changed: int = 0
    tokens: int = 0
    health_failures: int = 0
    recovery_s: list[float] = field(default_factory=list)  # from a kill until /ready says 200
    errors: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether no client noticed a kill."""
        return self.lost == self.changed == self.health_failures == 0 < self.streams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("model", metavar="MODEL", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="(%(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, metavar="N", help="(%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--least-pause",
        type=float,
        default=0.5,
        metavar="S",
        help="shortest time from ready to the next kill (%(default)s)",
    )
    parser.add_argument(
        "--longest-pause",
        type=float,
        default=4.0,
        metavar="S",
        help="longest time from ready to the next kill (%(default)s)",
    )
    parser.add_argument(
        "--time-limit", type=float, metavar="S", help="no more kills after S seconds (none)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the kill times (%(default)s)"
    )
    add_server_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: if the numbers make no sense or the server has ended.
    """
    if args.kills < 1 or args.concurrency < 1 or not 0 <= args.least_pause <= args.longest_pause:
        raise ValueError("--kills, --concurrency and the pauses should be positive and in order")
    report = asyncio.run(_measure(args))
    print(_format(report, args))
    if args.json:
        args.json.write_text(json.dumps(asdict(report), indent=1), encoding="utf-8")
    return 0 if report.is_clean else 1


async def _measure(args: argparse.Namespace) -> FaultReport:
    import httpx

    calls = _calls(args)
    async with ready_server([args.model, *args.serve_flag]) as (server, client):
        undisturbed = await asyncio.gather(*(send(client, call) for call in calls))
        failed = [outcome.error for outcome in undisturbed if outcome.error is not None]
        if failed:
            raise ValueError(f"failed without any kill: {failed[0]}")
        siege = _Siege(client, server, calls, [outcome.text for outcome in undisturbed])
        try:
            await siege.run(args)
        except httpx.HTTPError as error:
            server.require_alive()
            raise ValueError(f"the server does not answer: {error!r}") from error
        return siege.report


class _Siege:
    """Keeps streams open while it kills workers."""

    def __init__(
        self,
        client: "AsyncClient",
        server: OwnServer,
        calls: Sequence[Call],
        expected: Sequence[str],
    ) -> None:
        self.report = FaultReport()
        self._client = client
        self._server = server
        self._calls = calls
        self._expected = expected
        self._is_over = False

    async def run(self, args: argparse.Namespace) -> None:
        """Kill workers as often as the flags say, then let the streams end."""
        streams = [asyncio.create_task(self._keep_asking(i)) for i in range(len(self._calls))]
        try:
            await self._kill(args)
            self._is_over = True
            await asyncio.gather(*streams)
        finally:
            for stream in streams:
                stream.cancel()

    async def _keep_asking(self, first: int) -> None:
        for number in count(first):
            if self._is_over:
                return
            index, kills_before = number % len(self._calls), self.report.kills
            outcome = await send(self._client, self._calls[index])
            self._judge(outcome, self._expected[index], self.report.kills > kills_before)

    def _judge(self, outcome: Outcome, expected: str, is_disturbed: bool) -> None:
        report = self.report
        report.streams += 1
        report.disturbed += is_disturbed
        report.tokens += outcome.num_output_tokens
        if outcome.error is not None:
            report.lost += 1
            report.errors.append(outcome.error)
        elif outcome.text != expected:
            report.changed += 1

    async def _kill(self, args: argparse.Namespace) -> None:
        moments, started = random.Random(args.seed), time.perf_counter()
        with ProgressReport("faults", args.kills, "kills") as progress:
            for number in range(args.kills):
                if number and args.time_limit and time.perf_counter() - started > args.time_limit:
                    return
                await asyncio.sleep(moments.uniform(args.least_pause, args.longest_pause))
                await self._kill_once()
                progress.update(number + 1)

    async def _kill_once(self) -> None:
        """Kill the worker and wait until the server is ready again."""
        pid = self._server.worker_pid
        if pid is None:
            raise ValueError("the server has no worker")
        os.kill(pid, signal.SIGKILL)
        killed = time.perf_counter()
        self.report.kills += 1
        is_alive = await until_recovered(self._client, self._server)
        self.report.recovery_s.append(time.perf_counter() - killed)
        self.report.health_failures += not is_alive


def _calls(args: argparse.Namespace) -> list[Call]:
    """Return a different request for each stream, every other one sampled."""
    prompts = [prompt.text for prompt in choose_prompts(None, None)]
    return [
        Call(
            path="/v1/chat/completions",
            body={
                "model": args.model,
                "messages": [{"role": "user", "content": prompts[index % len(prompts)]}],
                "max_tokens": args.max_tokens,
                "temperature": 0.8 * (index % 2),
                "seed": index,
                "ignore_eos": True,
            },
        )
        for index in range(args.concurrency)
    ]


def _format(report: FaultReport, args: argparse.Namespace) -> str:
    times = sorted(report.recovery_s)
    p50, p90 = (percentile_of(times, each) for each in (50, 90))
    lines = [
        f"{'kills':<16} {report.kills}",
        f"{'streams':<16} {report.streams}, {args.concurrency} at a time, {report.tokens} tokens",
        f"{'disturbed':<16} {report.disturbed} of them were open during a kill",
        f"{'lost':<16} {report.lost}",
        f"{'texts changed':<16} {report.changed}",
        f"{'/health failed':<16} {report.health_failures}",
        f"{'recovery':<16} p50 {p50:.2f} s, p90 {p90:.2f} s, max {times[-1]:.2f} s",
    ]
    return "\n".join(
        [*lines, *(f"error: {error}" for error in report.errors[:5]), verdict(report.is_clean)]
    )
