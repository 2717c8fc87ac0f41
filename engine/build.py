"""The composition root, where the two planes meet: configuration → worker → engine."""

import asyncio

from engine.async_engine import AsyncEngine
from engine.checkpoint import Progress
from engine.config import EngineConfig
from engine.inline_worker import inline_model_worker
from engine.plan import Worker
from engine.tokenizer import load_tokenizer
from engine.worker_process import WorkerProcess


async def build_engine(config: EngineConfig, on_progress: Progress | None = None) -> AsyncEngine:
    """Return an engine that is not started yet; its worker process already imports its modules.

    Args:
        on_progress: Called with (what is being done, fraction done) while the worker loads.

    Raises:
        ModelLoadError: The tokenizer cannot be read, or the chat template cannot be used.
    """
    if config.worker == "inline":
        return await _with_tokenizer(config, inline_model_worker(config))
    worker = WorkerProcess(config, on_progress)
    await worker.spawn()
    try:
        return await _with_tokenizer(config, worker)
    except BaseException:  # also when a signal cancels the load: no worker may be left running
        await worker.close()
        raise


async def _with_tokenizer(config: EngineConfig, worker: Worker) -> AsyncEngine:
    tokenizer = await asyncio.to_thread(load_tokenizer, config.model.directory, config.chat)
    return AsyncEngine(config, worker, tokenizer)
