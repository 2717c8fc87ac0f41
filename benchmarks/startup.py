"""How long a server takes to start: `python -m benchmarks.startup`.

Measures from the command `adadecode serve` until `/ready` says 200, several times in a row, to a
tenth of a second. Only a first start converts the model and profiles it; later ones find the
results in the cache. Needs httpx.
"""

import argparse
import asyncio
import time

import httpx  # noqa: F401 - here, so that its import is not timed

from benchmarks.machine import describe_machine, print_facts
from benchmarks.own_server import ready_server


def main() -> None:
    """Print a line per start."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--times", type=int, default=4, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--serve-flag", action="append", default=[], metavar="FLAG", help="for the server; repeat"
    )
    args = parser.parse_args()
    print_facts(describe_machine())
    for _ in range(args.times):
        print(f"{'ready after':<12} {asyncio.run(_start(args.serve_flag)):.1f} s", flush=True)


async def _start(flags: list[str]) -> float:
    started = time.perf_counter()
    async with ready_server(flags):
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
