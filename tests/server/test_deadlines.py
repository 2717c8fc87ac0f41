"""Deadlines around a generation's outputs."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from engine.errors import DeadlinePassed, QueuedTooLong
from server.deadlines import Deadlines, within


class Source:
    """Outputs that come after so many seconds each; notes that it was closed."""

    def __init__(self, *delays_s: float) -> None:
        self._delays_s = delays_s
        self.is_closed = False

    async def outputs(self) -> AsyncGenerator[int, None]:
        try:
            for index, delay_s in enumerate(self._delays_s):
                await asyncio.sleep(delay_s)
                yield index
        finally:
            self.is_closed = True


async def gathered(source: Source, deadlines: Deadlines, *, has_started: bool = True) -> list[int]:
    taken: list[int] = []
    try:
        async for item in within(deadlines, source.outputs(), lambda: has_started):
            taken.append(item)
    finally:
        assert source.is_closed
    return taken


@pytest.mark.parametrize("deadlines", [Deadlines(0, 0), Deadlines(5, 0), Deadlines(5, 5)])
async def test_outputs_in_time_pass(deadlines):
    assert await gathered(Source(0, 0.01, 0), deadlines) == [0, 1, 2]


@pytest.mark.parametrize("delays_s", [(30,), (0, 30), (0.01, 0.01, 30)])
async def test_a_late_output_ends_them(delays_s):
    with pytest.raises(DeadlinePassed):
        await gathered(Source(*delays_s), Deadlines(0, 0.1))


async def test_only_what_has_not_started_has_queued_too_long():
    with pytest.raises(QueuedTooLong):
        await gathered(Source(30), Deadlines(0.05, 0), has_started=False)
    assert await gathered(Source(0.2, 0), Deadlines(0.05, 0)) == [0, 1]


async def test_a_reader_that_is_cancelled_closes_them():
    source = Source(0, 30)
    reading = asyncio.create_task(gathered(source, Deadlines(0, 60)))
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    assert source.is_closed
