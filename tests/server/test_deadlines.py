"""Deadlines: each passes once, and none that was cancelled."""

import asyncio

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
