"""`adadecode bench soak`: mixed traffic beyond capacity, clients that leave, workers that die.

Starts its own server, sends every request once undisturbed, then sends them at random, more at once
than the server runs. A share of the clients leaves at a random moment, and the worker is killed
from time to time. The exit status is 1 if a request was lost or hung, a text changed, or the
server, when idle again, still holds a request or a KV block.
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
from math import inf
from typing import TYPE_CHECKING

from benchmarks.own_server import (
    OwnServer,
    add_server_flags,
    ready_server,
    until_ready,
    until_recovered,
)
from benchmarks.prompts import choose_prompts
from benchmarks.serve_client import Call, Outcome, send
from benchmarks.serve_figures import percentile_of
from benchmarks.server_gauges import HELD, gauge, until_idle
from benchmarks.verdict import verdict
from training.flag_types import positive, positive_number, share
from training.progress import ProgressReport

if TYPE_CHECKING:
    from httpx import AsyncClient

# A request counts as hung if nobody gets an answer for so long, or if after that time it has been
# overtaken too often. The server's queue is first come, first served.
_HUNG_AFTER_S = 900.0
_MOST_OVERTAKING = 10  # answers to others meanwhile, per client
_WARM_UP_SHARE = 1 / 3  # first memory samples, which the slope leaves out
_NUM_CALLS = 16
_SHARED_PREFIX = "You are asked many questions that begin with these very words. " * 4


@dataclass(slots=True, kw_only=True)
class SoakReport:
    """The outcome of a soak."""

    duration_s: float = 0.0
    requests: int = 0  # sent
    finished: int = 0
    aborted: int = 0  # abandoned by their client
    lost: int = 0
    wrong: int = 0
    hung: int = 0
    kills: int = 0
    recovery_s: list[float] = field(default_factory=list)
    left_behind: dict[str, float] = field(default_factory=dict)  # gauges once idle: should be 0
    rss_mb: list[tuple[float, float]] = field(default_factory=list)  # (seconds, server's RSS)
    errors: list[str] = field(default_factory=list)

    @property
    def rss_slope_mb_per_hour(self) -> float:
        """The growth of the server's memory: least squares over the samples after the warm-up."""
        samples = self.rss_mb[int(len(self.rss_mb) * _WARM_UP_SHARE) :]
        if len(samples) < 2:
            return 0.0
        mean_t = sum(t for t, _ in samples) / len(samples)
        mean_y = sum(y for _, y in samples) / len(samples)
        spread = sum((t - mean_t) ** 2 for t, _ in samples)
        return 3600 * sum((t - mean_t) * (y - mean_y) for t, y in samples) / spread

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, wrong, hung or left behind."""
        return self.lost == self.wrong == self.hung == 0 < self.finished and not any(
            self.left_behind.values()
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("model", metavar="MODEL", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--minutes", type=positive_number, default=20.0, help="(%(default)s)")
    parser.add_argument(
        "--requests", type=positive, metavar="N", help="end after N requests (--minutes)"
    )
    parser.add_argument(
        "--concurrency", type=positive, default=16, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--max-num-seqs",
        type=positive,
        default=8,
        metavar="N",
        help="requests that run at once (%(default)s)",
    )
    parser.add_argument(
        "--max-tokens", type=positive, default=48, metavar="N", help="(%(default)s)"
    )
    parser.add_argument("--abort-share", type=share, default=0.3, metavar="P", help="(%(default)s)")
    parser.add_argument(
        "--kill-every",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds between worker kills; 0: never (%(default)s)",
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
    if args.abort_share == 1 or args.max_tokens < 2:
        raise ValueError("--abort-share should be below 1, --max-tokens at least 2")
    if not 0 <= args.kill_every < inf:
        raise ValueError("--kill-every should be a finite number of at least 0")
    report = asyncio.run(_measure(args))
    print(_format(report))
    if args.json:
        figures = asdict(report) | {"rss_slope_mb_per_hour": report.rss_slope_mb_per_hour}
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0 if report.is_clean else 1


async def _measure(args: argparse.Namespace) -> SoakReport:
    calls = _calls(args)
    flags = [args.model, "--max-num-seqs", str(args.max_num_seqs), *args.serve_flag]
    async with ready_server(flags) as (server, client):
        expected = []
        for call in calls:
            outcome = await send(client, call)
            if outcome.error is not None:
                raise ValueError(f"failed undisturbed: {outcome.error}")
            expected.append(outcome.text)
        soak = _Soak(args, client, server, calls, expected)
        await soak.run()
        return soak.report


class _Soak:
    """Runs clients, kills and memory samples until the time is over."""

    def __init__(
        self,
        args: argparse.Namespace,
        client: "AsyncClient",
        server: OwnServer,
        calls: Sequence[Call],
        expected: Sequence[str],
    ) -> None:
        self.report = SoakReport()
        self._args = args
        self._client = client
        self._server = server
        self._calls = calls
        self._expected = expected
        self._random = random.Random(args.seed)
        self._started = time.monotonic()

    async def run(self) -> None:
        """Run the whole soak, after which the report is complete."""
        extras = [asyncio.create_task(self._sample()), asyncio.create_task(self._show())]
        if self._args.kill_every:
            extras.append(asyncio.create_task(self._kill()))
        try:
            await asyncio.gather(*(self._ask() for _ in range(self._args.concurrency)))
        finally:
            for task in extras:
                task.cancel()
            ended = await asyncio.gather(*extras, return_exceptions=True)
        self.report.errors += [repr(each) for each in ended if isinstance(each, Exception)]
        self.report.duration_s = self._elapsed_s
        self._server.require_alive()
        await until_ready(self._client, self._server)
        self.report.left_behind = await until_idle(self._client)

    @property
    def _is_over(self) -> bool:
        if self._args.requests:
            return self.report.requests >= self._args.requests
        return self._elapsed_s > 60 * self._args.minutes

    @property
    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started

    async def _ask(self) -> None:
        """Send one request after another, as clients of which some leave early."""
        report = self.report
        while not self._is_over:
            report.requests += 1
            index = self._random.randrange(len(self._calls))
            asking = asyncio.create_task(send(self._client, self._calls[index]))
            if self._random.random() < self._args.abort_share:
                _, waiting = await asyncio.wait({asking}, timeout=self._random.uniform(0, 3))
                if waiting:
                    asking.cancel()
                    await asyncio.wait({asking})
                    report.aborted += 1
                    continue
            if not await self._is_answered(asking):
                asking.cancel()
                report.hung += 1
                continue
            outcome = asking.result()
            if outcome.error is not None:
                report.lost += 1
                report.errors.append(outcome.error)
            else:
                report.finished += 1
                report.wrong += outcome.text != self._expected[index]

    async def _is_answered(self, asking: "asyncio.Task[Outcome]") -> bool:
        """Wait for an answer until the request counts as hung; return whether there is one."""
        report, answers_before = self.report, self.report.finished
        while True:
            latest = report.finished
            await asyncio.wait({asking}, timeout=_HUNG_AFTER_S)
            if asking.done():
                return True
            overtaking = report.finished - answers_before
            if report.finished == latest or overtaking > _MOST_OVERTAKING * self._args.concurrency:
                held = {name: gauge(await self._metrics(), name) for name in HELD}
                report.errors.append(f"hung while {overtaking} others were answered: {held}")
                return False

    async def _metrics(self) -> str:
        return (await self._client.get("/metrics")).text

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(self._args.kill_every)
            pid = self._server.worker_pid
            if pid is None or self._is_over:  # no kill disturbs the last requests
                continue
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            self.report.kills += 1
            await until_recovered(self._client, self._server)
            self.report.recovery_s.append(time.monotonic() - killed)

    async def _show(self) -> None:
        """Show the progress in requests or seconds."""
        goal = round(self._args.requests or 60 * self._args.minutes)
        unit = "requests" if self._args.requests else "s"
        with ProgressReport("soak", goal, unit) as progress:
            while True:
                done = self.report.requests if self._args.requests else round(self._elapsed_s)
                progress.update(min(goal, done))
                await asyncio.sleep(1)

    async def _sample(self) -> None:
        while True:
            sample = self._elapsed_s, self._server.rss_bytes / 2**20
            self.report.rss_mb.append(sample)
            await asyncio.sleep(1)


def _calls(args: argparse.Namespace) -> list[Call]:
    """Return different requests: long and short, greedy and sampled, half with a shared prefix."""
    prompts = [prompt.text for prompt in choose_prompts(None, None)]
    choose = random.Random(args.seed)
    return [
        Call(
            path="/v1/chat/completions",
            body={
                "model": args.model,
                "messages": [
                    {
                        "role": "user",
                        "content": _SHARED_PREFIX * (index % 2) + prompts[index % len(prompts)],
                    }
                ],
                "max_tokens": choose.randint(2, args.max_tokens),
                "temperature": 0.8 * (index // 2 % 2),
                "seed": index,
                "early_exit": {"enabled": index % 5 != 0},
            },
        )
        for index in range(_NUM_CALLS)
    ]


def _format(report: SoakReport) -> str:
    lines = [
        f"{'time':<16} {report.duration_s:.0f} s",
        f"{'requests':<16} {report.requests}: {report.finished} finished, "
        f"{report.aborted} left by their client",
        f"{'lost':<16} {report.lost}",
        f"{'wrong':<16} {report.wrong}",
        f"{'hung':<16} {report.hung}",
        f"{'left behind':<16} "
        + ", ".join(f"{name} {value:g}" for name, value in report.left_behind.items()),
        f"{'server RSS':<16} {report.rss_slope_mb_per_hour:+.1f} MB per hour after warm-up",
        f"{'kills':<16} {report.kills}",
    ]
    if report.recovery_s:
        times = sorted(report.recovery_s)
        lines.append(
            f"{'recovery':<16} p50 {percentile_of(times, 50):.2f} s, max {times[-1]:.2f} s"
        )
    return "\n".join(
        [*lines, *(f"error: {error}" for error in report.errors[:5]), verdict(report.is_clean)]
    )
