"""Every deadline fires once, unless it was cancelled."""

import asyncio
from functools import partial

import pytest

from engine.errors import DeadlinePassed, QueuedTooLong
from server.deadlines import Deadlines


@pytest.mark.parametrize(
    ("deadlines", "has_started", "passed"),
    [
        (Deadlines(0, 0), False, []),
        (Deadlines(0.01, 0), True, []),
        (Deadlines(0.01, 0), False, [QueuedTooLong]),
        (Deadlines(0, 0.01), True, [DeadlinePassed]),
        (Deadlines(0.01, 0.02), True, [DeadlinePassed]),
    ],
)
async def test_they_pass(
    deadlines: Deadlines, has_started: bool, passed: list[type[Exception]]
) -> None:
    errors: list[Exception] = []
    deadlines.set(lambda: has_started, errors.append)
    await asyncio.sleep(0.05)

    assert [type(error) for error in errors] == passed


async def test_cancelled_they_never_do() -> None:
    errors: list[Exception] = []
    deadlines = Deadlines(0.01, 0.01)
    deadlines.set(lambda: False, errors.append)
    deadlines.cancel()
    deadlines.cancel()
    await asyncio.sleep(0.03)

    assert errors == []


@pytest.mark.parametrize(
    ("deadlines", "passed"),
    [
        (Deadlines(0.01, 0), QueuedTooLong),
        (Deadlines(0, 0.01), DeadlinePassed),
        (Deadlines(0.01, 60), QueuedTooLong),
        (Deadlines(60, 0.01), DeadlinePassed),
    ],
)
async def test_they_end_what_comes_before_the_queue(
    deadlines: Deadlines, passed: type[Exception]
) -> None:
    preparing = asyncio.ensure_future(asyncio.sleep(60))
    with pytest.raises(DeadlinePassed) as raised:
        await deadlines.keep(lambda: preparing)

    assert type(raised.value) is passed
    assert preparing.cancelled()


@pytest.mark.parametrize("deadlines", [Deadlines(0, 0), Deadlines(60, 60)])
async def test_a_timeout_of_the_preparation_is_its_own(deadlines: Deadlines) -> None:
    async def fail() -> None:
        raise TimeoutError

    assert await deadlines.keep(lambda: asyncio.sleep(0, "done")) == "done"
    with pytest.raises(TimeoutError):
        await deadlines.keep(fail)


@pytest.mark.filterwarnings("error")
async def test_who_leaves_at_once_leaves_nothing_behind() -> None:
    """A preparation that had been made, but not begun, was reported as never awaited."""
    keeping = asyncio.ensure_future(Deadlines(60, 60).keep(partial(asyncio.sleep, 60)))
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping


async def test_time_before_the_queue_counts() -> None:
    errors: list[Exception] = []
    deadlines = Deadlines(0, 0.5)
    await deadlines.keep(partial(asyncio.sleep, 0.45))
    started = asyncio.get_running_loop().time()
    deadlines.set(lambda: True, errors.append)
    while not errors:
        await asyncio.sleep(0.001)

    assert asyncio.get_running_loop().time() - started < 0.45
