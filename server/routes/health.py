"""GET /health and /ping (alive), /ready (can serve), /version and /metrics."""

from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from server.context import context_of
from server.protocol.common import ResponseModel
from server.service import ServiceState
from server.version import VERSION

router = APIRouter(tags=["operations"])


class Status(ResponseModel):
    """The service's state in a word."""

    status: str


class Version(ResponseModel):
    """The server's version."""

    version: str


@router.get("/health", responses={503: {"model": Status}})
async def health(request: Request, response: Response) -> Status:
    """200 while the process is worth keeping, even while it loads or replaces a lost worker.

    503 once the engine has failed for good.
    """
    context = context_of(request)
    if context.service.state is ServiceState.FAILED:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return Status(status=ServiceState.FAILED)
    return Status(status="ok")


@router.get("/ping", responses={503: {"model": Status}})
async def ping(request: Request, response: Response) -> Status:
    """The same as /health, where SageMaker asks for it."""
    return await health(request, response)


@router.post("/ping", responses={503: {"model": Status}})
async def post_ping(request: Request, response: Response) -> Status:
    """The same as GET /ping; a body is ignored."""
    return await health(request, response)


@router.get("/ready", responses={503: {"model": Status}})
async def ready(request: Request, response: Response) -> Status:
    """200 while requests can be served."""
    context = context_of(request)
    state = context.service.state
    if state is not ServiceState.READY:
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return Status(status=state)


@router.get("/version")
async def version() -> Version:
    """The server's version."""
    return Version(version=VERSION)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    context = context_of(request)
    return Response(await context.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
