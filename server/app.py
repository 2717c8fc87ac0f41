"""The application: `create_app` puts routes, middleware and error handlers around a service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route

from engine.errors import EngineError
from server.access_log import AccessLogMiddleware
from server.admission import AdmissionMiddleware
from server.context import ServerContext
from server.errors import BodyError, ModelNotReady, ResponseNotStored, failure_of
from server.metrics import ServerMetrics
from server.middleware import (
    REQUEST_ID_HEADER,
    ApiKeyMiddleware,
    LastResortMiddleware,
    RequestIdMiddleware,
)
from server.observer import Observer
from server.openapi import describe
from server.routes import chat, completions, embeddings, health, info, models, responses, tokenize
from server.routes.ui import PAGE_PATHS, add_page
from server.seeds import SeedSource
from server.service import InferenceService
from server.settings import ServerSettings
from server.tracing import make_tracer
from server.version import VERSION

_DESCRIPTION = (
    "Unknown request fields are ignored. Fields of OpenAI's or vLLM's APIs that would change the "
    "output and are not offered are refused with code `unsupported_parameter`, and so are other "
    "servers' names for a structure, a bound or an end of the output."
)
_CLIENT_CLOSED_REQUEST = 499  # nginx's code; only the access log sees it


def create_app(service: InferenceService, settings: ServerSettings) -> FastAPI:
    """Build the application; the service starts and stops with it.

    Raises:
        TracingUnavailable: traces were asked for, and their packages are not installed.
    """
    metrics = ServerMetrics(service)
    tracer = make_tracer(settings.otlp_traces_endpoint, service.model_names[0])

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()
        metrics.close()
        if tracer is not None:
            await asyncio.to_thread(tracer.close)

    app = FastAPI(
        title="AdaDecode Server",
        version=VERSION,
        summary="OpenAI-compatible inference with verified early exits.",
        description=_DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's own pages load their scripts from a CDN: without a network they do not work, and
        # with one they run third-party code in the browser.
        docs_url=None,
        redoc_url=None,
        # `server.tracing` makes the traces, and never puts a prompt or an exception's text in one.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.root_path = settings.root_path
    app.state.context = ServerContext(
        settings, service, metrics, Observer(metrics, tracer), SeedSource(settings.seed)
    )
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    for routes in (chat, completions, responses, embeddings, tokenize, models, info, health):
        # Not `include_router`: FastAPI would look up the routes of an included router twice.
        app.router.routes += routes.router.routes
    _answer_head(app)
    if settings.ui:
        add_page(app)
    for error in (EngineError, BodyError, ModelNotReady, ResponseNotStored, HTTPException):
        app.add_exception_handler(error, _answer_error)
    app.add_exception_handler(ClientDisconnect, _note_disconnect)
    _add_middleware(app, service, settings)
    return app


def _add_middleware(app: FastAPI, service: InferenceService, settings: ServerSettings) -> None:
    """Add the middleware, innermost first: the last one added is the outermost."""
    app.add_middleware(
        AdmissionMiddleware,
        service=service,
        max_concurrent_per_key=settings.max_concurrent_per_key,
    )
    if keys := settings.api_keys:
        open_pages = PAGE_PATHS if settings.ui else ()
        app.add_middleware(ApiKeyMiddleware, keys=keys, open_pages=open_pages)
    if settings.allowed_origins:  # outside the key check: preflight requests carry no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=settings.allowed_methods,
            allow_headers=settings.allowed_headers,
            allow_credentials=settings.allow_credentials,
            expose_headers=[REQUEST_ID_HEADER],
        )
    app.add_middleware(LastResortMiddleware)
    if settings.access_log != "none":
        app.add_middleware(AccessLogMiddleware, style=settings.access_log)
    app.add_middleware(RequestIdMiddleware)


def _answer_head(app: FastAPI) -> None:
    """Answer HEAD wherever GET is answered, as HTTP asks; the API's description need not say so."""
    for route in list(app.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                status_code=route.status_code,
                include_in_schema=False,
            )


async def _answer_error(request: Request, error: Exception) -> Response:
    response = failure_of(error).response()
    if response.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """Return the methods that the request's path takes, over all its routes."""
    routes = (route for route in request.app.routes if isinstance(route, Route))
    found = [each for each in routes if each.matches(request.scope)[0] is not Match.NONE]
    methods = {method for route in found for method in route.methods or ()}
    return methods or {"GET", "HEAD"}  # of the page's files, which have no routes


async def _note_disconnect(_: Request, __: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)
