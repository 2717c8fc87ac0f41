"""A lost worker is replaced as long as a new one may help."""

import asyncio
import errno
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fake_worker import FakeWorker

from engine.errors import EngineFailed, ModelLoadError, WorkerLost
from engine.plan import WorkerInfo
from engine.request import Structure
from engine.supervisor import Supervisor

KILLED = WorkerLost("killed", is_crash=False, was_killed=True)
CRASHED = WorkerLost("crashed", is_crash=True)


class Loader:
    """A worker whose loading fails with each of the errors in `failures`; notes its calls."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.info = FakeWorker().info
        self.calls: list[str] = []

    async def start(self) -> WorkerInfo:
        self.calls.append("start")
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop()
        return self.info

    async def prepare(self, _: Structure) -> None:
        self.calls.append("prepare")

    async def close(self) -> None:
        self.calls.append("close")


def killed_while_loading() -> ModelLoadError:
    """Return the error that a worker process raises if it is killed while it loads."""
    error = ModelLoadError("while loading the model, the worker was killed")
    error.__cause__ = KILLED
    return error


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
async def supervisor(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr("engine.supervisor._LONGEST_PAUSE_S", 0.0)
    supervisor = Supervisor(loader)  # type: ignore[arg-type]
    await supervisor.start()
    return supervisor


async def test_crashes_without_progress_end_it_soon(supervisor: Supervisor) -> None:
    for _ in range(4):
        await supervisor.replace(CRASHED)
    with pytest.raises(EngineFailed):
        await supervisor.replace(CRASHED)


async def test_kills_are_borne_longer(supervisor: Supervisor) -> None:
    for _ in range(24):
        await supervisor.replace(KILLED)
    with pytest.raises(EngineFailed):
        await supervisor.replace(KILLED)


async def test_a_kill_while_loading_is_a_kill(supervisor: Supervisor, loader: Loader) -> None:
    for _ in range(10):
        loader.failures.append(killed_while_loading())
        await supervisor.replace(KILLED)
    assert supervisor.num_restarts == 10


async def test_kills_do_not_count_as_crashes(supervisor: Supervisor) -> None:
    for _ in range(20):
        await supervisor.replace(KILLED)
    for _ in range(4):
        await supervisor.replace(CRASHED)
    with pytest.raises(EngineFailed):
        await supervisor.replace(CRASHED)


async def test_a_system_short_of_processes_is_asked_again(
    supervisor: Supervisor, loader: Loader
) -> None:
    loader.failures = [OSError(errno.EMFILE, "too many open files")] * 2
    await supervisor.replace(KILLED)
    assert supervisor.num_restarts == 1


async def test_starts_that_fail_slowly_are_not_forgotten(
    supervisor: Supervisor, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a large model loads for minutes and then does not fit."""
    now = itertools.count(0.0, 301.0)
    monkeypatch.setattr("engine.supervisor.time", SimpleNamespace(monotonic=now.__next__))
    loader.failures = [ModelLoadError("does not fit")] * 1000
    with pytest.raises(EngineFailed):
        await supervisor.replace(CRASHED)
    assert len(loader.failures) == 996


async def test_losses_long_ago_are_forgotten(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(0.0, 301.0)
    monkeypatch.setattr("engine.supervisor.time", SimpleNamespace(monotonic=now.__next__))
    for _ in range(20):
        await supervisor.replace(CRASHED)


async def test_what_is_left_of_a_worker_is_ended_before_the_next_one_starts(
    supervisor: Supervisor, loader: Loader
) -> None:
    loader.failures = [ModelLoadError("does not fit")]
    await supervisor.replace(KILLED)
    assert loader.calls == ["start", "close", "start", "close", "start"]


async def test_only_a_worker_of_the_same_model_replaces_another(
    supervisor: Supervisor, loader: Loader
) -> None:
    loader.info = replace(loader.info, num_blocks=7)
    assert await supervisor.replace(KILLED) == loader.info
    loader.info = replace(loader.info, vocab_size=7)
    with pytest.raises(EngineFailed, match="something else"):
        await supervisor.replace(KILLED)


async def test_while_no_worker_is_ready_none_is_asked_to_prepare(
    supervisor: Supervisor, loader: Loader
) -> None:
    structure = Structure(kind="json_object")
    replacing = asyncio.create_task(supervisor.replace(KILLED))
    await asyncio.sleep(0)
    await supervisor.prepare(structure)
    assert "prepare" not in loader.calls
    await replacing
    await supervisor.prepare(structure)
    assert loader.calls[-1] == "prepare"


async def test_the_time_without_a_worker_adds_up(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(0.0, 1.0)  # it is looked at when a loss begins, is noted, and ends
    monkeypatch.setattr("engine.supervisor.time", SimpleNamespace(monotonic=now.__next__))
    await supervisor.replace(KILLED)
    await supervisor.replace(KILLED)
    assert supervisor.recovery_time_s_total == 4.0
