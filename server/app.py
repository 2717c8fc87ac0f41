"""The application: `create_app` puts routes, middleware and error handlers around a service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from engine.errors import EngineError
from server.context import ServerContext
from server.errors import BodyError, ModelNotReady, failure_of
from server.metrics import ServerMetrics
from server.middleware import ApiKeyMiddleware, LastResortMiddleware, RequestIdMiddleware
from server.openapi import describe
from server.routes import chat, completions, health, models
from server.seeds import SeedSource
from server.service import InferenceService
from server.settings import ServerSettings
from server.version import VERSION

_DESCRIPTION = (
    "Unknown request fields are ignored. Fields of OpenAI's or vLLM's APIs that would change the "
    "output and are not offered are refused with code `unsupported_parameter`."
)
_CLIENT_CLOSED_REQUEST = 499  # nginx's code; only the access log sees it


def create_app(service: InferenceService, settings: ServerSettings) -> FastAPI:
    """Build the application; the service starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="AdaDecode Server",
        version=VERSION,
        summary="OpenAI-compatible inference with verified early exits.",
        description=_DESCRIPTION,
        lifespan=lifespan,
    )
    app.state.context = ServerContext(
        settings, service, ServerMetrics(service), SeedSource(settings.seed)
    )
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    for routes in (chat, completions, models, health):
        app.include_router(routes.router)
    for error in (EngineError, BodyError, ModelNotReady, HTTPException):
        app.add_exception_handler(error, _answer_error)
    app.add_exception_handler(ClientDisconnect, _note_disconnect)
    _add_middleware(app, settings)
    return app


def _add_middleware(app: FastAPI, settings: ServerSettings) -> None:
    """The last one added is the outermost."""
    if settings.api_key:
        keys = [key.get_secret_value() for key in settings.api_key]
        app.add_middleware(ApiKeyMiddleware, keys=keys)
    app.add_middleware(LastResortMiddleware)
    app.add_middleware(RequestIdMiddleware)


async def _answer_error(_: Request, error: Exception) -> Response:
    return failure_of(error).response()


async def _note_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
