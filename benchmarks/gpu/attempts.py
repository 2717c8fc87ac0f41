"""Parts of the benchmark in a process that may die: what is left goes on in another.

A kernel at fault leaves its process without a device, a hanging one never returns to Python: both
must cost one part, not those after it. Knows processes and the report's file, no tensors.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu.report import Report

DEVICE_BROKEN = 75
"""Status of a process that has recorded why it cannot go on."""

_POLL_S = 0.2


def run_parts(
    command: Callable[[Sequence[str]], Sequence[str]],
    parts: Sequence[str],
    file: Path,
    deadline: float,
    *,
    grace_s: float = 15.0,
) -> Report:
    """Run all parts, in as many processes as it takes.

    Args:
        command: Of a process that runs some parts in order and adds to the report's file.
        deadline: By `time.time`.
        grace_s: For a part to end by itself once its time is over.
    """
    file.unlink(missing_ok=True)
    left = list(parts)
    while left:
        status = _watch(command(left), file, deadline, grace_s)
        report = Report.read(file, deadline)
        ended = set(report.durations_s)
        for part, (began, _) in report.running.items():
            report.fail(part, f"its process ended with status {status}")
            report.durations_s[part] = time.time() - began
            ended.add(part)
        report.running = {}
        if ended.isdisjoint(left):  # it never got so far
            report.fail("start", f"the process ended with status {status} before its first part")
            report.write()
            return report
        report.write()
        left = [part for part in left if part not in ended]
    return Report.read(file, deadline)


def _watch(command: Sequence[str], file: Path, deadline: float, grace_s: float) -> int:
    """The process's status once it has ended, by itself or because it hung."""
    with subprocess.Popen(command) as process:
        started = time.time()
        while process.poll() is None:
            time.sleep(_POLL_S)
            report = Report.read(file, deadline)
            limits = [deadline, *(until for _, until in report.running.values())]
            if time.time() > max(min(limits), started) + grace_s:
                process.kill()
        return process.returncode
