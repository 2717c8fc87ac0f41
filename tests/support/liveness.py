"""Whether a process lives, and waiting for what another process is about to do."""

import time
from collections.abc import Callable
from pathlib import Path

DEADLINE_S = 60.0  # for waits of milliseconds on an idle machine


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended does not, even if nobody has waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(is_true: Callable[[], bool]) -> None:
    """Return once a condition holds; fail if it does not hold for too long."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
