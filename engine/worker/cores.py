"""The CPU cores this process may use, by its affinity mask and its control group's quota, and in
what order threads are best put on them. Knows Linux's files; elsewhere all cores count.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Literal

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """How many cores' worth of time there is: a container's share, not the whole machine."""
    return max(1, math.ceil(min(len(_mask()), _quota(root))))


def cores_to_pin(
    num_threads: int, wish: Literal["auto", "always", "never"], root: Path = _ROOT
) -> list[int]:
    """A core for each thread; none where threads are better left to the system.

    With "auto" that is where no core is left for the server and whatever else runs, and where cores
    are only lent by a quota: a thread whose core is taken holds up all the others.
    """
    mask = _mask()
    has_room = num_threads < len(mask) <= _quota(root)
    if wish == "never" or (wish == "auto" and not has_room):
        return []
    return sorted(mask, key=lambda core: (_rank_among_siblings(core, root), core))[:num_threads]


def _mask() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _rank_among_siblings(core: int, root: Path) -> int:
    """0 for the first hardware thread of a physical core, 1 for the second."""
    file = root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"
    with suppress(OSError, ValueError):
        return sorted(_numbers(file.read_text())).index(core)
    return 0


def _numbers(text: str) -> Iterator[int]:
    """Of a list like 0,8 or 0-1,4."""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _quota(root: Path) -> float:
    """Cores by the tightest limit of the process's control groups; infinity without one."""
    quotas = [math.inf]
    for group in _groups(root):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with suppress(OSError, ValueError):  # no such file, or the limit is "max"
                quota, period = map(
                    int, " ".join((group / file).read_text() for file in files).split()
                )
                quotas += [quota / period] if quota > 0 else []
    return min(quotas)


def _groups(root: Path) -> Iterator[Path]:
    """The control group this process is in and those around it, of version 2 and of version 1."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = mount / controllers if controllers else mount
        own = PurePosixPath(path.lstrip("/"))
        yield from (base / group for group in (own, *own.parents))
