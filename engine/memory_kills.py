"""Counts the processes that the kernel has killed for lack of memory.

The count tells such a kill from a person's `kill -9`, which looks the same otherwise.
"""

from pathlib import Path

_COUNTERS = Path("/proc/vmstat")  # of the whole machine, containers included
_NAME = "oom_kill"


def num_memory_kills(counters: Path = _COUNTERS) -> int | None:
    """Return how many there were since the machine started; None if the system does not say."""
    try:
        lines = counters.read_text(encoding="ascii").splitlines()
        return int(dict(line.split() for line in lines)[_NAME])
    except (OSError, KeyError, ValueError):
        return None
