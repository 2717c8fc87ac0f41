"""The composition root: configuration → worker → engine. Where the two planes meet."""

from collections.abc import Callable

from engine.async_engine import AsyncEngine
from engine.config import EngineConfig
from engine.inline_worker import inline_model_worker
from engine.plan import Worker
from engine.tokenizer import load_tokenizer
from engine.worker_process import WorkerProcess


def build_engine(
    config: EngineConfig, on_progress: Callable[[str, float], None] | None = None
) -> AsyncEngine:
    """An engine that is not started yet.

    Args:
        on_progress: Called with (what is being done, fraction done) while the worker loads.

    Raises:
        ModelLoadError: if the tokenizer cannot be read.
    """
    worker: Worker
    if config.worker == "inline":
        worker = inline_model_worker(config)
    else:
        worker = WorkerProcess(config, on_progress)
    return AsyncEngine(config, worker, load_tokenizer(config.model.directory))
