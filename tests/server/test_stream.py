"""Streams in isolation: how they end, and what they rely on in sse-starlette."""

import asyncio

import pytest

from server.stream import AnswerStream

EVENTS = (b"data: 1\n\n", b"data: 2\n\n")
LAST = b"data: [DONE]\n\n"


class Client:
    """A client with a stream to it; keeps what it is sent and notes how the stream closes."""

    def __init__(self, *, never_ends=False, keep_alive_s=0.0):
        self.sent = []
        self.sends = lambda message: asyncio.sleep(0)
        self.num_closed = 0
        self.was_closed_inside = False
        self.leaving = asyncio.get_running_loop().create_future()
        self.last_piece = b""
        self._never_ends = never_ends
        self.stream = AnswerStream(self, self.leaving, self._close, keep_alive_s)

    async def read(self):
        await self.stream({"type": "http", "method": "POST"}, None, self.send)

    async def send(self, message):
        self.sent.append(message)
        await self.sends(message)

    @property
    def bodies(self):
        return [each["body"] for each in self.sent[1:]]

    async def body(self):
        try:
            for event in EVENTS:
                yield event
            if self._never_ends:
                await asyncio.Event().wait()
            self.last_piece = LAST
        except (asyncio.CancelledError, GeneratorExit):
            self.was_closed_inside = True
            raise

    def _close(self):
        self.num_closed += 1


async def test_a_stream_sends_its_events_and_the_last_with_its_end():
    client = Client()
    await client.read()

    assert client.sent[0]["type"] == "http.response.start"
    assert client.bodies == [*EVENTS, LAST]
    assert [each.get("more_body", False) for each in client.sent[1:]] == [True, True, False]
    assert client.num_closed == 1
    assert client.leaving.cancelled()
    await asyncio.sleep(0)
    assert not asyncio.current_task().cancelling(), "nobody has left"


async def test_streams_have_headers_of_their_own():
    first, second = Client(), Client()
    await first.read()
    first.sent[0]["headers"].append((b"x-request-id", b"first"))
    await second.read()

    assert (b"x-request-id", b"first") not in second.sent[0]["headers"]


async def test_a_send_that_fails_cancels_nothing_but_the_stream():
    client = Client()

    async def fail(message):
        raise ConnectionResetError

    client.sends = fail
    with pytest.raises(ConnectionResetError):
        await client.read()
    await asyncio.sleep(0)

    assert client.num_closed == 1
    assert not asyncio.current_task().cancelling()


async def test_a_client_that_leaves_while_it_is_sent_to_ends_what_makes_the_events():
    client = Client()

    async def never(message):
        if "body" in message:
            client.leaving.set_result(None)
            await asyncio.Event().wait()

    client.sends = never
    await client.read()

    assert client.was_closed_inside
    assert client.bodies == [EVENTS[0]]


async def test_it_ends_in_peace_when_the_client_leaves():
    client = Client(never_ends=True)
    asyncio.get_running_loop().call_later(0.01, client.leaving.set_result, None)
    await client.read()

    assert client.bodies == list(EVENTS), "nobody is told of the end"
    assert client.was_closed_inside
    assert client.num_closed == 1
    assert not asyncio.current_task().cancelling()


async def test_it_is_cancelled_as_any_task():
    client = Client(never_ends=True)
    reading = asyncio.create_task(client.read())
    await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading

    assert client.num_closed == 1
    assert client.leaving.cancelled()


async def test_comments_keep_it_alive_and_none_follows_its_end():
    client = Client(never_ends=True, keep_alive_s=0.01)

    async def leave_in_the_end(message):
        if len(client.bodies) == 5:
            client.leaving.set_result(None)

    client.sends = leave_in_the_end
    await asyncio.wait_for(client.read(), 10)
    comments = client.bodies[2:]
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await asyncio.sleep(0.05)

    assert len(comments) == 3
    assert set(comments) == {b": keep-alive\n\n"}
    assert client.bodies[2:] == comments
