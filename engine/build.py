"""The composition root: configuration → worker → engine. Where the two planes meet."""

import asyncio
from collections.abc import Callable

from engine.async_engine import AsyncEngine
from engine.config import EngineConfig
from engine.inline_worker import inline_model_worker
from engine.plan import Worker
from engine.tokenizer import load_tokenizer
from engine.worker_process import WorkerProcess


async def build_engine(
    config: EngineConfig, on_progress: Callable[[str, float], None] | None = None
) -> AsyncEngine:
    """An engine that is not started yet; its worker's process imports what it needs meanwhile.

    Args:
        on_progress: Called with (what is being done, fraction done) while the worker loads.

    Raises:
        ModelLoadError: if the tokenizer cannot be read.
    """
    if config.worker == "inline":
        return await _with_tokenizer(config, inline_model_worker(config))
    worker = WorkerProcess(config, on_progress)
    await worker.spawn()
    try:
        return await _with_tokenizer(config, worker)
    except BaseException:  # also when a signal cancels the load: no worker may stay behind
        await worker.close()
        raise


async def _with_tokenizer(config: EngineConfig, worker: Worker) -> AsyncEngine:
    tokenizer = await asyncio.to_thread(load_tokenizer, config.model.directory)
    return AsyncEngine(config, worker, tokenizer)
