"""The OpenAPI document, with the body types that FastAPI cannot see (`server.body` parses them)."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.errors import ErrorResponse
from server.middleware import OPEN_PATHS
from server.protocol.chat import ChatCompletionChunk, ChatCompletionRequest
from server.protocol.completions import CompletionRequest
from server.protocol.embeddings import EmbeddingsRequest
from server.protocol.response_events import ResponseStreamEvent
from server.protocol.responses import ResponsesRequest
from server.protocol.tokenize import DetokenizeRequest, TokenizeRequest

_REF_TEMPLATE = "#/components/schemas/{model}"
_ERRORS = {
    400: "The request cannot be honoured; `param` names the field",
    401: "No key, or a wrong one (`--api-key`)",
    404: "No such model or response",
    408: "The body took too long to arrive",
    413: "The body is too large (`--max-request-bytes`)",
    415: "The body is not JSON, or is compressed",
    429: "The key has too many requests open (`--max-concurrent-per-key`)",
    500: "The server failed",
    503: "Loading, overloaded or shutting down; try again after `Retry-After` seconds",
    504: "The request took longer than `--request-timeout` allows",
}


def accepts(body_type: type[BaseModel], **example: Any) -> dict[str, Any]:
    """Return `openapi_extra` for a route whose body is `body_type`, such as `example`."""
    content: dict[str, Any] = {"application/json": {"schema": _ref(body_type)}}
    if example:
        content["application/json"]["example"] = example
    return {"requestBody": {"required": True, "content": content}}


def streams(
    chunk_type: type[BaseModel], *, end: str = ", then `[DONE]`"
) -> dict[int | str, dict[str, Any]]:
    """Return `responses` for a route that answers with events of `chunk_type` or with errors."""
    description = f"The answer; with `stream: true`, events with these chunks{end}"
    return {
        200: {
            "description": description,
            "content": {"text/event-stream": {"schema": _event(chunk_type, is_marked=bool(end))}},
        },
        **computes(),
    }


def computes() -> dict[int | str, dict[str, Any]]:
    """Return `responses` for a route that runs the model: its errors."""
    return errors(400, 404, 408, 413, 415, 429, 500, 503, 504)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return `responses` for a route that can fail with `statuses`, or with 401 (--api-key)."""
    return {
        status: {"description": _ERRORS[status], "model": ErrorResponse}
        for status in (401, *statuses)
    }


def describe(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's document plus the types it cannot see."""
    if app.openapi_schema is None:
        document = FastAPI.openapi(app)
        _, definitions = models_json_schema(
            [
                (ChatCompletionRequest, "validation"),
                (CompletionRequest, "validation"),
                (DetokenizeRequest, "validation"),
                (EmbeddingsRequest, "validation"),
                (ResponsesRequest, "validation"),
                (TokenizeRequest, "validation"),
                (ChatCompletionChunk, "serialization"),
                (ResponseStreamEvent, "serialization"),
            ],
            ref_template=_REF_TEMPLATE,
        )
        schemas = document["components"]["schemas"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        for name, schema in definitions["$defs"].items():
            schemas.setdefault(name, schema)
        context = app.state.context
        served = list(context.service.model_names)
        for name, schema in schemas.items():
            if name.endswith("Request") and "model" in schema["properties"]:
                _name_models(schema["properties"]["model"], served)
        for path, methods in document["paths"].items():
            for operation in methods.values():
                _name_model(operation, served)
                _complete_errors(operation["responses"], path)
        if context.settings.api_keys:
            _require_key(document)
        app.openapi_schema = document
    return app.openapi_schema


def _name_models(field: dict[str, Any], names: list[str]) -> None:
    """List the served models' names as the values that a model field may have."""
    for branch in field.get("anyOf", [field]):
        if branch.get("type") == "string":
            branch.pop("maxLength", None)
            branch["enum"] = names


def _name_model(operation: dict[str, Any], names: list[str]) -> None:
    """Name a served model in an operation's example, so that this server can answer it."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "example" in content:
        content["example"] = {"model": names[0], **content["example"]}


def _require_key(document: dict[str, Any]) -> None:
    """Say that everything but the probes needs an API key."""
    document["components"]["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"apiKey": []}]
    for path in OPEN_PATHS:
        for operation in document["paths"][path].values():
            operation["security"] = []


def _complete_errors(responses: dict[str, Any], path: str) -> None:
    """Add the errors that an operation of a path may return, and remove FastAPI's own 422."""
    responses.pop("422", None)
    of_key = () if path in OPEN_PATHS else (401,)
    of_parameters = (404,) if "{" in path else ()
    for status in (*of_key, 500, 503, *of_parameters):
        content = {"application/json": {"schema": _ref(ErrorResponse)}}
        responses.setdefault(str(status), {"description": _ERRORS[status], "content": content})


def _event(chunk_type: type[BaseModel], *, is_marked: bool) -> dict[str, Any]:
    """Describe a server-sent event as OpenAPI 3.2 does: its data is a chunk's JSON or the end mark.

    Args:
        chunk_type: The type of the chunk.
        is_marked: The stream ends with `[DONE]`, and its data may also be an error.
    """
    chunk = {"anyOf": [_ref(chunk_type), _ref(ErrorResponse)]} if is_marked else _ref(chunk_type)
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": chunk}
    return {
        "type": "object",
        "required": ["data"],
        "properties": {
            "event": {"type": "string"},
            "data": {"anyOf": [{"const": "[DONE]"}, data]} if is_marked else data,
        },
    }


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF_TEMPLATE.format(model=model.__name__)}
