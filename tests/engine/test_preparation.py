"""The worker's answers about structures reach those who asked, whoever has left meanwhile."""

import asyncio
import socket
from contextlib import suppress

from engine.preparation import Preparation
from engine.request import Structure
from engine.wire import HEADER, Prepared, Wire, frame_length

FIRST, SECOND = (Structure(kind="regex", source=text) for text in "ab")


async def test_whoever_leaves_does_not_leave_an_answer_for_the_next() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    answer = Wire().encode(Prepared())
    preparation = Preparation(ours)

    first = asyncio.create_task(preparation.prepare(FIRST))
    await _receive(reader)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    second = asyncio.create_task(preparation.prepare(SECOND))
    writer.write(answer)
    await _receive(reader)
    await asyncio.sleep(0.01)
    assert not second.done(), "that was the first one's answer"
    writer.write(answer)
    await second
    preparation.close()
    writer.close()


async def _receive(reader: asyncio.StreamReader) -> None:
    length, _ = frame_length(await reader.readexactly(HEADER.size))
    await reader.readexactly(length)
