"""Middleware around every request: its id and record, the last resort for errors, the API key.

Plain ASGI, because Starlette's BaseHTTPMiddleware hides disconnects from streams.
"""

import hashlib
import logging
import re
import secrets
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import InvalidApiKey, failure_of
from server.records import RequestRecord, begin_record, record_of
from server.tracing import TRACE_CONTEXT_HEADERS

REQUEST_ID_HEADER = "X-Request-Id"
_ASKED_ID = REQUEST_ID_HEADER.lower().encode()
API_KEY = "api_key"  # key in a scope's state: the digest of the request's API key
_UNSAFE_IN_ID = re.compile(r"[^A-Za-z0-9._:\-]")
_MAX_ID_CHARS = 128
OPEN_PATHS = frozenset({"/health", "/ready", "/ping"})  # for probes, which have no key

logger = logging.getLogger(__name__)


class RequestIdMiddleware:
    """Echoes the client's X-Request-Id, made safe, or gives the request one; begins its record."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(reversed(scope["headers"]))  # the first of each name
        asked = headers.get(_ASKED_ID, b"").decode("latin-1")
        request_id = _UNSAFE_IN_ID.sub("", asked[: 4 * _MAX_ID_CHARS])[:_MAX_ID_CHARS]
        request_id = request_id or secrets.token_hex(16)
        context = {
            name: headers[key].decode("latin-1")
            for name in TRACE_CONTEXT_HEADERS
            if (key := name.encode()) in headers
        }
        record = RequestRecord(request_id=request_id, trace_context=context)
        begin_record(scope, record)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class LastResortMiddleware:
    """Logs exceptions that nobody handled and answers them with a plain 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            if record_of(HTTPConnection(scope)).status is not None:
                # Too late for another answer; uvicorn closes the connection.
                logger.warning("response broke off: %s", type(error).__name__)
                raise
            logger.exception("unhandled error")
            await failure_of(error).response()(scope, receive, send)


class ApiKeyMiddleware:
    """Requires one of the keys everywhere except at the probes and `open_pages`."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_pages: Collection[str] = ()) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]
        self._open_paths = OPEN_PATHS.union(open_pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and route_path(scope) not in self._open_paths:
            scheme, _, key = Headers(scope=scope).get("Authorization", "").partition(" ")
            digest = _digest(key.strip())
            if scheme.lower() != "bearer" or not self._is_known(digest):
                await failure_of(InvalidApiKey()).response()(scope, receive, send)
                return
            scope.setdefault("state", {})[API_KEY] = digest.hex()
        await self._app(scope, receive, send)

    def _is_known(self, digest: bytes) -> bool:
        """Compare with every key in constant time, so that timing tells nothing."""
        matches = [secrets.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def route_path(scope: Scope) -> str:
    """Return the path as the router sees it: a proxy may leave its prefix (--root-path) on."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
