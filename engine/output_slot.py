"""Where a request's outputs wait for their reader: one slot that merges, never a growing queue."""

import asyncio
from dataclasses import replace

from engine.request import RequestOutput


class OutputSlot:
    """At most one pending output per request."""

    def __init__(self) -> None:
        self._pending: RequestOutput | None = None
        self._arrived = asyncio.Event()

    def put(self, output: RequestOutput) -> None:
        """Add an output, merged with the one that waits."""
        pending = self._pending
        self._pending = output if pending is None else merged(pending, output)
        self._arrived.set()

    async def take(self) -> RequestOutput:
        """All that has come since the last call; waits for something."""
        await self._arrived.wait()
        self._arrived.clear()
        output, self._pending = self._pending, None
        assert output is not None
        return output


def merged(first: RequestOutput, second: RequestOutput) -> RequestOutput:
    """Two consecutive outputs as one."""
    return replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        trace=first.trace + second.trace,
    )
