"""The acceptance table runs last: its rows ask how the tests that they point to have ended.

Where several processes share a run, each has cores of its own, so that what one does never slows
down what another waits for, and they tell each other their outcomes in a directory.
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
    """Outcomes of this run, and this process's share of the machine."""
    process: dict[str, Any] = getattr(config, "workerinput", {})
    if process:
        _keep_to_cores(int(process["workerid"].removeprefix("gw")), int(process["workercount"]))
    config.stash[OUTCOMES] = Outcomes(Path(process["outcomes"]) if process else None)
    config.pluginmanager.register(config.stash[OUTCOMES])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """A process of the run is about to be started."""
    stash = node.config.stash
    if _SHARED not in stash:
        stash[_SHARED] = tempfile.TemporaryDirectory()
    node.workerinput["outcomes"] = stash[_SHARED].name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order is kept otherwise."""
    items.sort(key=lambda item: item.path.name == "test_acceptance_table.py")


def _keep_to_cores(number: int, count: int) -> None:
    if not hasattr(os, "sched_setaffinity"):  # not everywhere
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= count:
        os.sched_setaffinity(0, cores[number::count])
