"""Where a request's outputs wait for their reader: one slot that merges, never a growing queue."""

import asyncio
from dataclasses import replace

from engine.errors import EngineError
from engine.request import RequestOutput


class OutputSlot:
    """At most one pending output per request."""

    def __init__(self) -> None:
        self._pending: RequestOutput | None = None
        self._error: EngineError | None = None
        self._arrived = asyncio.Event()

    def put(self, output: RequestOutput) -> None:
        """Add an output, merged with the one that waits."""
        pending = self._pending
        self._pending = output if pending is None else merged(pending, output)
        self._arrived.set()

    def fail(self, error: EngineError) -> None:
        """Nothing more will come, for this reason."""
        self._error = error
        self._arrived.set()

    async def take(self) -> RequestOutput:
        """All that has come since the last call; waits for something.

        Raises:
            EngineError: what `fail` was told, once everything that came before it is taken.
        """
        await self._arrived.wait()
        output, self._pending = self._pending, None
        if output is None:
            assert self._error is not None
            raise self._error
        if self._error is None:
            self._arrived.clear()
        return output


def merged(first: RequestOutput, second: RequestOutput) -> RequestOutput:
    """Two consecutive outputs as one."""
    return replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        trace=first.trace + second.trace,
        prompt_logprobs=first.prompt_logprobs + second.prompt_logprobs,
    )
