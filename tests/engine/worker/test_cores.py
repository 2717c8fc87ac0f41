"""How many cores a worker may use, and when its threads are pinned to them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.worker.cores import cores_to_pin, usable_cores

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="a system with affinity masks"
)

Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Returns a function that simulates a machine: usable cores, files, four physical cores."""

    def describe(cores: int, files: dict[str, str] | None = None) -> Path:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
        siblings = {
            f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list": (
                f"{core % 4},{core % 4 + 4}\n"
            )
            for core in range(8)
        }
        for name, text in {**siblings, **(files or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return describe


def test_all_cores_of_the_mask_count_where_no_quota_is(machine: Machine) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}
    assert usable_cores(machine(6)) == 6
    assert usable_cores(machine(6, files)) == 6


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),
        (  # the tightest of the enclosing groups
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/docker/1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
    ],
)
def test_a_containers_share_counts(machine: Machine, files: dict[str, str], expected: int) -> None:
    root = machine(8, files)
    assert usable_cores(root) == expected
    assert cores_to_pin(1, "auto", root) == []  # each of the eight cores may be taken by others


def test_threads_are_pinned_where_the_server_has_a_core_besides(machine: Machine) -> None:
    root = machine(8)
    assert cores_to_pin(4, "auto", root) == [0, 1, 2, 3]  # one for each physical core
    assert cores_to_pin(6, "auto", root) == [0, 1, 2, 3, 4, 5]
    assert cores_to_pin(8, "auto", root) == []
    assert cores_to_pin(4, "never", root) == []
    assert cores_to_pin(8, "always", root) == list(range(8))
    assert cores_to_pin(12, "always", root) == list(range(8))  # shared in turn
