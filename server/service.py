"""The served model's life: loading → ready ⇄ recovering → stopping, or failed. One per application.

The application answers from the first moment on; routes ask here for the model and get it, or the
exception that says why there is none. Knows neither HTTP nor how the model is loaded.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from engine import AsyncEngine, EngineInfo, Tokenizer
from engine.errors import EngineFailed, EngineStopped, ModelNotFound
from server.errors import ModelNotReady
from server.sampling_defaults import SamplingDefaults

logger = logging.getLogger(__name__)


class ServiceState(StrEnum):
    """What the service can do for a request."""

    LOADING = "loading"
    READY = "ready"
    RECOVERING = "recovering"  # a lost worker is being replaced; requests wait for it
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded model: the engine and the tokenizer that serve it, and its sampling defaults."""

    engine: AsyncEngine
    tokenizer: Tokenizer
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)

    @property
    def info(self) -> EngineInfo:
        """The model's facts as of now: they may change, as a new worker may have less memory."""
        assert self.engine.info is not None, "a started engine knows its model"
        return self.engine.info


class InferenceService:
    """Loads one model in the background and hands it out while it can serve."""

    def __init__(
        self, model_names: tuple[str, ...], load: Callable[[], Awaitable[ServedModel]]
    ) -> None:
        self.model_names = model_names
        self.created = int(time.time())  # Unix time, for model cards
        self._load_failure: Exception | None = None
        self._load = load
        self._loading: asyncio.Task[None] | None = None
        self._model: ServedModel | None = None
        self._is_stopping = False

    @property
    def failure(self) -> Exception | None:
        """Why the model could not be loaded, or can no longer be served."""
        if self._load_failure is None and self._model is not None:
            return self._model.engine.fatal_error
        return self._load_failure

    @property
    def state(self) -> ServiceState:
        """The state as of now."""
        if self.failure is not None:
            return ServiceState.FAILED
        if self._is_stopping:
            return ServiceState.STOPPING
        if self._model is None:
            return ServiceState.LOADING
        is_recovering = self._model.engine.is_recovering
        return ServiceState.RECOVERING if is_recovering else ServiceState.READY

    @property
    def loaded_model(self) -> ServedModel | None:
        """The model, if it was ever loaded, in whatever state."""
        return self._model

    def model(self, name: str | None) -> ServedModel:
        """Return the model of that name, able to serve; None: the one there is.

        Raises:
            ModelNotReady: it is still loading.
            EngineStopped: the server is shutting down.
            EngineFailed: it could not be loaded, or died.
            ModelNotFound: another model is served here.
        """
        state = self.state
        if state is ServiceState.STOPPING:
            raise EngineStopped("shutting down")
        if state is ServiceState.FAILED:
            raise EngineFailed("the engine is not running")
        if self._model is None:
            raise ModelNotReady
        if name is not None and name not in self.model_names:
            raise ModelNotFound(name)
        return self._model

    def start(self) -> None:
        """Begin to load in the background, unless that has begun."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._run_load())

    async def stop(self, timeout_s: float = 0) -> None:
        """Take no new requests, let open ones finish for at most `timeout_s`, then end them."""
        self._is_stopping = True
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait({self._loading})
        if self._model is not None:
            await self._model.engine.stop(timeout_s)

    async def _run_load(self) -> None:
        try:
            self._model = await self._load()
        except Exception as error:  # whatever it is, /ready and the process's exit code report it
            self._load_failure = error
