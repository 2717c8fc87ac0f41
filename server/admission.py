"""Admission control on a request's head, before its body is read or tokenized.

That keeps a refusal cheap under overload. The engine decides again, exactly, once it knows how many
choices and tokens a request has.
"""

from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import EngineError, EngineOverloaded
from server.errors import TooManyOfOneKey, failure_of
from server.http_protocol import CROWDED
from server.middleware import API_KEY, route_path
from server.service import InferenceService

_OPERATIONS = frozenset({"/health", "/ready", "/ping", "/metrics"})  # never refused here
_GENERATING = frozenset(
    {"/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings"}
)


class AdmissionMiddleware:
    """Refuses requests beyond the limits of connections, of the engine's queue or of one key."""

    def __init__(
        self, app: ASGIApp, service: InferenceService, max_concurrent_per_key: int | None
    ) -> None:
        self._app = app
        self._service = service
        self._max_per_key = max_concurrent_per_key
        self._open: Counter[str] = Counter()  # requests being answered, by key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            key = self._admit(scope)
        except (EngineError, TooManyOfOneKey) as error:
            response = failure_of(error).response()
            if scope.get("state", {}).get(CROWDED):
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._leave(key)

    def _admit(self, scope: Scope) -> str | None:
        """Admit the request and count it against its key.

        Returns:
            The key to give to `_leave`; None if no limit per key applies.

        Raises:
            EngineError: the server has no room.
            TooManyOfOneKey: the key has as many requests open as it may.
        """
        path = route_path(scope)
        if scope.get("state", {}).get(CROWDED) and path not in _OPERATIONS:
            raise EngineOverloaded("too many connections")
        if scope["method"] != "POST" or path not in _GENERATING:
            return None
        model = self._service.loaded_model
        if model is not None and model.engine.is_ready:
            model.engine.check_room()
        if self._max_per_key is None:
            return None
        key = _key_of(scope)
        if self._open[key] >= self._max_per_key:
            raise TooManyOfOneKey
        self._open[key] += 1
        return key

    def _leave(self, key: str | None) -> None:
        if key is not None:
            self._open[key] -= 1
            if self._open[key] == 0:
                del self._open[key]


def _key_of(scope: Scope) -> str:
    """Return the API key's digest or, without keys, the client's address."""
    client: str = (scope.get("client") or ("",))[0]
    return str(scope.get("state", {}).get(API_KEY, client))
