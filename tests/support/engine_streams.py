"""An engine in an event loop with a fake worker, and the streams of its requests."""

import asyncio
from collections.abc import Callable

from fake_worker import Letters

from engine.async_engine import AsyncEngine
from engine.config import EngineConfig, ModelConfig, SchedulerConfig
from engine.inline_worker import InlineWorker
from engine.request import GenerationRequest, RequestOutput


def engine_on(worker: InlineWorker, **scheduler: int) -> AsyncEngine:
    """Make an engine that is not started yet."""
    config = EngineConfig(
        model=ModelConfig(directory="unused"), scheduler=SchedulerConfig(**scheduler)
    )
    return AsyncEngine(config, worker, Letters())


async def collect(engine: AsyncEngine, request: GenerationRequest) -> list[RequestOutput]:
    """Return all outputs that a request's reader gets."""
    return [output async for output in engine.generate(request)]


async def until(is_true: Callable[[], bool]) -> None:
    """Let other tasks run until a condition holds."""
    while not is_true():
        await asyncio.sleep(0)


def text_of(outputs: list[RequestOutput]) -> str:
    """Return the text of outputs."""
    return "".join(output.text for output in outputs)
