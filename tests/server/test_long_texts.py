"""Work on long texts leaves the event loop free, and holds up no work on shorter ones."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from server.long_texts import LongTexts

SHORT, LONG, VERY_LONG = 100, 10_000, 1_000_000


class Client:
    """Somebody who leaves when told to."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.request = Request({"type": "http"}, self._receive)

    async def _receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
def blocking() -> Iterator[threading.Event]:
    """Work for which others may have to wait, until this is set."""
    event = threading.Event()
    yield event
    event.set()


def wait_for(event: threading.Event) -> None:
    assert event.wait(10)


@pytest.mark.parametrize(
    ("length", "is_slow", "is_apart"),
    [(SHORT, False, False), (SHORT, True, True), (LONG, False, True), (VERY_LONG, False, True)],
)
async def test_only_work_that_takes_long_runs_on_a_thread(
    length: int, is_slow: bool, is_apart: bool
) -> None:
    ran_on = await LongTexts().run(
        Client().request, threading.current_thread, length, is_slow=is_slow
    )
    assert (ran_on is not threading.current_thread()) == is_apart


async def test_the_shorter_do_not_wait_for_the_longer(blocking: threading.Event) -> None:
    texts = LongTexts()
    slow = asyncio.create_task(texts.run(Client().request, lambda: wait_for(blocking), VERY_LONG))
    await asyncio.sleep(0)
    assert await texts.run(Client().request, lambda: "done", LONG) == "done"
    assert not slow.done()
    blocking.set()
    await slow


async def test_one_runs_at_a_time_and_none_for_who_has_left(blocking: threading.Event) -> None:
    texts, ran = LongTexts(), list[str]()
    first = asyncio.create_task(texts.run(Client().request, lambda: wait_for(blocking), VERY_LONG))
    await asyncio.sleep(0)
    leaver, stayer = Client(), Client()
    left = asyncio.create_task(texts.run(leaver.request, lambda: ran.append("a"), VERY_LONG))
    stayed = asyncio.create_task(texts.run(stayer.request, lambda: ran.append("b"), VERY_LONG))
    await asyncio.sleep(0.01)
    leaver.leaves.set()
    with pytest.raises(ClientDisconnect):
        await left
    assert not stayed.done()
    blocking.set()
    await asyncio.gather(first, stayed)
    assert ran == ["b"]
