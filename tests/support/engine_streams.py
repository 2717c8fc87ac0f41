"""An engine in an event loop on a fake worker, and the streams that come of its requests."""

import asyncio
from collections.abc import Callable

from fake_worker import Letters

from engine.async_engine import AsyncEngine
from engine.config import EngineConfig, ModelConfig, SchedulerConfig
from engine.inline_worker import InlineWorker
from engine.request import GenerationRequest, RequestOutput


def engine_on(worker: InlineWorker, **scheduler: int) -> AsyncEngine:
    """Not started yet."""
    config = EngineConfig(
        model=ModelConfig(directory="unused"), scheduler=SchedulerConfig(**scheduler)
    )
    return AsyncEngine(config, worker, Letters())


async def collect(engine: AsyncEngine, request: GenerationRequest) -> list[RequestOutput]:
    """All that a request's reader gets."""
    return [output async for output in engine.generate(request)]


async def until(is_true: Callable[[], bool]) -> None:
    """Let everybody else go on until it is so."""
    while not is_true():
        await asyncio.sleep(0)


def text_of(outputs: list[RequestOutput]) -> str:
    """What was said."""
    return "".join(output.text for output in outputs)
