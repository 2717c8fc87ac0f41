"""The error envelope, and the one table that says which exception becomes which answer.

`{"error": {"message", "type", "param", "code"}}` everywhere, as OpenAI's clients expect. Messages
of 4xx come from our own checks and never echo input; those of 5xx are fixed texts, so that nothing
internal leaks.
"""

from dataclasses import dataclass
from http import HTTPStatus

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response

from engine.errors import (
    DeadlinePassed,
    EngineFailed,
    EngineOverloaded,
    EngineStopped,
    ModelNotFound,
    QueuedTooLong,
    RequestError,
    RequestFailed,
)

_INVALID = "invalid_request_error"
_UNAVAILABLE = "service_unavailable_error"


class ErrorBody(BaseModel):
    """What went wrong, in OpenAI's terms."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """The envelope of every error."""

    error: ErrorBody


class BodyError(Exception):
    """The request's body was refused before it was parsed."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class InvalidApiKey(Exception):
    """The request has no key, or one that is not among the server's."""


class ResponseNotStored(Exception):
    """A response was asked for by its id; none is ever stored."""


class TooManyOfOneKey(Exception):
    """The key, or the client, has as many requests open as it may."""


class ModelNotReady(Exception):
    """The model is still loading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception, translated: the answer's status, headers and body."""

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    @property
    def is_internal(self) -> bool:
        """Whether it is our fault and the log should have the details."""
        return self.status == HTTPStatus.INTERNAL_SERVER_ERROR

    @property
    def error(self) -> ErrorBody:
        """The envelope's content."""
        return ErrorBody(message=self.message, type=self.type, param=self.param, code=self.code)

    @property
    def body(self) -> bytes:
        """The envelope as JSON."""
        return ErrorResponse(error=self.error).model_dump_json().encode()

    def response(self) -> Response:
        """Return the envelope as an HTTP response."""
        headers = {}
        if self.code == "request_failed":
            headers["x-should-retry"] = "false"  # OpenAI's clients try again after a 500
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == HTTPStatus.REQUEST_TIMEOUT:
            headers["Connection"] = "close"  # the rest of the body may never come
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(self.body, self.status, headers, media_type="application/json")


def missing_field(param: str) -> RequestError:
    """Return the error about a field that the request has to have."""
    return RequestError(f"{param}: field required.", param=param, code="missing_required_parameter")


# Exceptions without details of their own: (status, type, code, message).
_FIXED: dict[type[Exception], tuple[int, str, str, str]] = {
    ModelNotFound: (
        404,
        _INVALID,
        "model_not_found",
        "The model does not exist; GET /v1/models lists the names of those that do.",
    ),
    ResponseNotStored: (
        404,
        _INVALID,
        "response_not_found",
        "Responses are not stored by this server (store is false); send the whole input again.",
    ),
    InvalidApiKey: (401, "authentication_error", "invalid_api_key", "Incorrect API key provided."),
    ModelNotReady: (503, _UNAVAILABLE, "model_loading", "The model is still loading."),
    EngineOverloaded: (
        503,
        _UNAVAILABLE,
        "server_is_overloaded",
        "Too many requests are waiting; try again later.",
    ),
    TooManyOfOneKey: (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
        "Too many requests are open for this key; try again when some have ended.",
    ),
    QueuedTooLong: (
        503,
        _UNAVAILABLE,
        "queue_timeout",
        "The request waited too long for its turn; try again later.",
    ),
    DeadlinePassed: (
        504,
        "timeout_error",
        "timeout",
        "The request took longer than this server allows.",
    ),
    EngineStopped: (503, _UNAVAILABLE, "shutting_down", "The server is shutting down."),
    RequestFailed: (
        500,
        "server_error",
        "request_failed",
        "The request cannot be computed; sending it again will not help.",
    ),
    EngineFailed: (500, "server_error", "engine_failed", "The engine failed; try again later."),
}
# Help appended to the errors of the router itself, by status.
_WRONG_ROUTES = {
    404: " This server has no such endpoint; GET /openapi.json lists those it has, such as "
    "/v1/chat/completions.",  # OpenAI's clients want a base URL that ends in /v1
    405: " GET /openapi.json lists the methods of every endpoint.",
}
_INTERNAL = (500, "server_error", "internal_error", "The server had an internal error.")


def failure_of(error: Exception) -> Failure:
    """Translate an exception; anything unknown is a 500 with a fixed text."""
    if isinstance(error, RequestError):
        return Failure(
            status=400, type=_INVALID, code=error.code, message=str(error), param=error.param
        )
    if isinstance(error, BodyError):
        return Failure(status=error.status, type=_INVALID, code=error.code, message=str(error))
    if isinstance(error, HTTPException):
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_")
        message = f"{phrase}." + _WRONG_ROUTES.get(error.status_code, "")
        return Failure(status=error.status_code, type=_INVALID, code=code, message=message)
    status, kind, code, message = next(
        (row for exception, row in _FIXED.items() if isinstance(error, exception)), _INTERNAL
    )
    return Failure(
        status=status,
        type=kind,
        code=code,
        message=message,
        param="model" if isinstance(error, ModelNotFound) else None,
        retry_after_s=getattr(error, "retry_after_s", 1) if status in (429, 503) else None,
    )
