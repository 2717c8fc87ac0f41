"""The access log: one line per request, written when its answer ends; it never contains a prompt.

Probes and metrics scrapes (`_QUIET_PATHS`) are not logged.
"""

import json
import logging
import time
from typing import Any, Literal

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from server.middleware import route_path
from server.records import RequestRecord, record_of

_QUIET_PATHS = ("/health", "/ready", "/ping", "/metrics")

logger = logging.getLogger(__name__)


class AccessLogMiddleware:
    """Logs method, path, status, duration and token counts, for people or as JSON."""

    def __init__(self, app: ASGIApp, style: Literal["text", "json"]) -> None:
        self._app = app
        self._format = _as_json if style == "json" else _as_text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) in _QUIET_PATHS:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        try:
            await self._app(scope, receive, send)
        finally:
            duration_s = time.perf_counter() - started
            logger.info("%s", self._format(scope, duration_s, record_of(HTTPConnection(scope))))


def _as_text(scope: Scope, duration_s: float, record: RequestRecord) -> str:
    tokens = ""
    if record.num_generations:
        reasons = ", ".join(dict.fromkeys(record.finish_reasons))
        tokens = (
            f", {record.num_prompt_tokens} prompt and {record.num_output_tokens} output tokens"
            f" ({reasons or 'refused'})"
        )
    return (
        f"{_client(scope)} {scope['method']} {scope['path']!a} {record.status or '-'} "
        f"{duration_s:.3f} s{tokens}, request {record.request_id}"
    )


def _as_json(scope: Scope, duration_s: float, record: RequestRecord) -> str:
    """Return the entry, which stays on one line whatever the path holds: JSON escapes it."""
    line: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "request_id": record.request_id,
        "client": _client(scope),
        "method": scope["method"],
        "path": scope["path"],
        "status": record.status,
        "duration_ms": _milliseconds(duration_s),
    }
    if record.num_generations:
        line |= {
            "time_to_first_token_ms": _milliseconds(record.first_token_s),
            "queue_ms": _milliseconds(record.queue_s),
            "prompt_tokens": record.num_prompt_tokens,
            "cached_tokens": record.num_cached_tokens,
            "completion_tokens": record.num_output_tokens,
            "finish_reasons": record.finish_reasons,
        }
    return json.dumps(line)


def _client(scope: Scope) -> str:
    host, port = scope.get("client") or ("-", 0)
    return f"{host}:{port}"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
