"""Orders the tests, and shares their outcomes with the acceptance table.

The rows of the acceptance table need the outcomes of the tests that they point to, so the table
runs late. Those tests run first, with all slow ones, so that no process has to wait for another's
last file, or to repeat a test that another has not finished.

Where several processes share a run, each has cores of its own, so that none slows another down, and
they exchange their outcomes in a directory.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("acceptance")

from acceptance.proofs import OUTCOMES, Outcomes  # noqa: E402

_SHARED = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Set up the outcomes of this run, and this process's share of the machine."""
    process: dict[str, Any] = getattr(config, "workerinput", {})
    if process:
        _keep_to_cores(int(process["workerid"].removeprefix("gw")), int(process["workercount"]))
    config.stash[OUTCOMES] = Outcomes(Path(process["outcomes"]) if process else None)
    config.pluginmanager.register(config.stash[OUTCOMES])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process that is about to start where outcomes are shared."""
    stash = node.config.stash
    if _SHARED not in stash:
        stash[_SHARED] = tempfile.TemporaryDirectory()
        node.config.add_cleanup(stash[_SHARED].cleanup)
    node.workerinput["outcomes"] = stash[_SHARED].name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files by turn; within a file, and among files of the same turn, order is kept."""
    early = {proof.partition("::")[0] for item in items for proof in _proofs_of(item)}
    early |= {_file_of(item) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: _turn(item, early))


def _turn(item: pytest.Item, early: set[str]) -> int:
    if item.path.name == "test_acceptance_table.py":
        return 2
    if item.path.parent.name == "training":  # last, because no row points there
        return 3
    return 0 if _file_of(item) in early else 1


def _proofs_of(item: pytest.Item) -> tuple[str, ...]:
    """Return the tests that a row of the acceptance table points to."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return getattr(parameters.get("row"), "proofs", ())


def _file_of(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _keep_to_cores(number: int, count: int) -> None:
    if not hasattr(os, "sched_setaffinity"):  # missing on some systems
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= count:
        os.sched_setaffinity(0, cores[number % count :: count])  # one that crashed is replaced
