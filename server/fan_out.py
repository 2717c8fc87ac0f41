"""Several generations as one stream of (choice index, output); closing it closes all of them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from engine.errors import DeadEnd, EngineStopped, RequestFailed
from engine.request import FinishReason, RequestOutput

Outputs = AsyncGenerator[RequestOutput, None]
IndexedOutputs = AsyncGenerator[tuple[int, RequestOutput], None]


async def fan_out(
    generations: Sequence[Outputs],
    *,
    most_at_once: int | None = None,
    demanding: str | None = None,
) -> IndexedOutputs:
    """Run generations at once and yield their outputs as they come.

    A failure of one ends all: an answer is given whole or not at all.

    Args:
        most_at_once: Run only so many at a time, in their order; None: all.
        demanding: The parameter to name where what is asked for leaves no token.

    Raises:
        EngineError: whatever a generation raised, or that it was aborted or failed.
    """
    if len(generations) == 1:
        async with aclosing(generations[0]) as only:
            async for output in only:
                yield 0, _undisturbed(output, demanding)
        return
    async with aclosing(_merge(generations, most_at_once or len(generations))) as merged:
        async for index, output in merged:
            yield index, _undisturbed(output, demanding)


def _undisturbed(output: RequestOutput, demanding: str | None) -> RequestOutput:
    if output.finish_reason is None:
        return output
    if output.finish_reason is FinishReason.DEAD_END:
        prefix = f"{demanding}: " if demanding else ""
        raise DeadEnd(f"{prefix}{output.error}.", param=demanding)
    if output.finish_reason is FinishReason.ERROR:
        raise RequestFailed(output.error or "the request failed")
    if output.finish_reason is FinishReason.ABORT:
        raise EngineStopped("aborted at shutdown")
    return output


async def _merge(generations: Sequence[Outputs], most_at_once: int) -> IndexedOutputs:
    # Bounded, so that a slow reader stops the pumps and the engine coalesces what it has.
    queue: asyncio.Queue[tuple[int, RequestOutput | Exception | None]]
    queue = asyncio.Queue(maxsize=most_at_once)
    turns = asyncio.Semaphore(most_at_once)

    async def pump(index: int, generation: Outputs) -> None:
        try:
            async with turns, aclosing(generation):
                async for output in generation:
                    await queue.put((index, output))
            await queue.put((index, None))
        except Exception as error:  # handed to the reader, which raises it
            await queue.put((index, error))

    pumps = [asyncio.create_task(pump(*numbered)) for numbered in enumerate(generations)]
    try:
        num_open = len(pumps)
        while num_open:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield index, item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
