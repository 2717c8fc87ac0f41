"""The CPU cores this process may use, by its affinity mask and its control groups' quotas, and the
order in which threads are best pinned to them. Reads Linux's files; elsewhere all cores count.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Literal

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Return how many cores' worth of time this process has, which in a container is its share."""
    return max(1, math.ceil(min(len(_mask()), _quota(root))))


def cores_to_pin(
    num_threads: int, wish: Literal["auto", "always", "never"], root: Path = _ROOT
) -> list[int]:
    """Return a core for each thread, or none if the system had better place the threads.

    With "auto" none are returned if no core would be left for the server and other processes, or if
    a quota grants less time than there are cores. A pinned thread whose core is taken by others
    would hold up all threads.
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
    """Return 0 for the first hardware thread of a physical core, 1 for the second."""
    file = root / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list"
    with suppress(OSError, ValueError):
        return sorted(_numbers(file.read_text())).index(core)
    return 0


def _numbers(text: str) -> Iterator[int]:
    """Yield the numbers of a list like 0,8 or 0-1,4."""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _quota(root: Path) -> float:
    """Return the cores that the tightest control group allows; infinity without a limit."""
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
    """Yield this process's control groups, version 2 and version 1, and those around them."""
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
