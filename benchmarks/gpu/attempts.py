"""Runs the benchmark's parts in a process that may die, and those that are left in another.

After a faulty kernel a process cannot use the device any more, and a hanging kernel never returns
to Python: either must cost one part, not those after it. This module knows processes and the
report's file, no tensors.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu.report import Report

DEVICE_BROKEN = 75
"""Exit status of a process that has recorded why it cannot go on."""

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
        command: Returns the command of a process that runs some parts in order and adds to the
            report's file.
        deadline: When all must be over, by `time.time`.
        grace_s: Seconds that a part has to end by itself once its time is over.
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
        if ended.isdisjoint(left):  # the process died before its first part
            report.fail("start", f"the process ended with status {status} before its first part")
            report.write()
            return report
        report.write()
        left = [part for part in left if part not in ended]
    return Report.read(file, deadline)


def _watch(command: Sequence[str], file: Path, deadline: float, grace_s: float) -> int:
    """Run a process, kill it if it hangs, and return its status."""
    with subprocess.Popen(command) as process:
        started = time.time()
        while process.poll() is None:
            time.sleep(_POLL_S)
            report = Report.read(file, deadline)
            limits = [deadline, *(until for _, until in report.running.values())]
            if time.time() > max(min(limits), started) + grace_s:
                process.kill()
        return process.returncode
