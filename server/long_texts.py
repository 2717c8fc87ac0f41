"""Runs work on long texts, such as encoding them, on threads, so that the event loop goes on.

There is one thread for texts of some length and one for very long ones: more at once would take the
worker's cores, and a text of usual length need not wait for one that takes seconds.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from server.connection import while_connected

_SHORT = 8192  # characters or tokens; about a millisecond of encoding
_VERY_LONG = 1 << 17  # some 50 ms of encoding
_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="texts")
_THREAD_OF_VERY_LONG = ThreadPoolExecutor(max_workers=1, thread_name_prefix="very-long-texts")

Result = TypeVar("Result")


async def run_on_text(
    request: Request, work: Callable[[], Result], length: int, *, is_slow: bool = False
) -> Result:
    """Run work on a text of so many characters or tokens, at once if it is short.

    Args:
        request: The request whose work it is.
        work: Called once.
        length: The text's length.
        is_slow: Whether the work may take long even if the text is short.

    Raises:
        ClientDisconnect: the client left; work that has not begun then never does.
    """
    if length <= _SHORT and not is_slow:
        return work()
    thread = _THREAD if length <= _VERY_LONG else _THREAD_OF_VERY_LONG
    loop = asyncio.get_running_loop()

    async def wait() -> Result:
        return await loop.run_in_executor(thread, work)

    return await while_connected(request, wait())
