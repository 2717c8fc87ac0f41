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

Result = TypeVar("Result")


class LongTexts:
    """The threads of one application."""

    def __init__(self) -> None:
        self._long = ThreadPoolExecutor(max_workers=1, thread_name_prefix="long-texts")
        self._very_long = ThreadPoolExecutor(max_workers=1, thread_name_prefix="very-long-texts")

    async def run(
        self, request: Request, work: Callable[[], Result], length: int, *, is_slow: bool = False
    ) -> Result:
        """Run work on a text, at once if it is short.

        Args:
            request: The request whose work it is.
            work: Called once.
            length: The text's characters or tokens.
            is_slow: Whether the work may take long even if the text is short.

        Raises:
            ClientDisconnect: the client left; work that has not begun then never does.
        """
        if length <= _SHORT and not is_slow:
            return work()
        thread = self._long if length <= _VERY_LONG else self._very_long
        loop = asyncio.get_running_loop()

        async def wait() -> Result:
            return await loop.run_in_executor(thread, work)

        return await while_connected(request, wait())
