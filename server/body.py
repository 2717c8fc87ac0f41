"""From a request's raw body to a checked wire type, or to an error that names the field.

The body is read under a size and a time limit and parsed strictly (no NaN, no "3" for 3, no 1.0 for
1), because the lax parsing that frameworks do by default lets such values through or answers 500.
"""

import asyncio
import re
from http import HTTPStatus
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from engine.errors import RequestError
from server.errors import BodyError
from server.http_protocol import connection_of

_RECEIVE_TIMEOUT_S = 30.0
# Of a body as large as allowed. To parse a value costs far more time than a byte, all of it in one
# piece, whatever thread does it; token ids in a list are the cheapest, and there may be many.
_MEAN_VALUE_BYTES = 256
_MEAN_NUMBER_BYTES = 16
_FLAT_NUMBERS = re.compile(rb"\[[-+.0-9eE,\s]*\]")
# Components of an error's location that name a branch of a union, not a field.
_UNION_BRANCH = re.compile(r"(str|int|float|bool|none|list\[.*|dict\[.*|function-.*)")
FIELD_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")  # others may be anything a client made up

WireType = TypeVar("WireType", bound=BaseModel)


async def parse_body(request: Request, wire_type: type[WireType], max_bytes: int) -> WireType:
    """Read and validate the body.

    Raises:
        BodyError: wrong content type, too large, or too slow.
        RequestError: not JSON, or a field is wrong; never contains input.
        ClientDisconnect: the client left while sending.
    """
    _check_headers(request, max_bytes)
    raw = await _read(request, max_bytes)
    _check_num_values(raw, max_bytes)
    try:
        return wire_type.model_validate_json(raw)
    except ValidationError as error:
        raise request_error(error) from None


def _check_headers(request: Request, max_bytes: int) -> None:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        message = "The request needs the header Content-Type: application/json."
        raise BodyError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        message = "Compressed request bodies are not supported."
        raise BodyError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)


async def _read(request: Request, max_bytes: int) -> bytes:
    connection = connection_of(request.scope)
    if connection is not None and connection.has_whole_body:
        return await _receive(request, max_bytes)  # which waits for nothing
    try:
        async with asyncio.timeout(_RECEIVE_TIMEOUT_S):
            return await _receive(request, max_bytes)
    except TimeoutError:
        message = "The request body took too long to arrive."
        raise BodyError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", message) from None


async def _receive(request: Request, max_bytes: int) -> bytes:
    raw = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        raw += message.get("body", b"")
        if len(raw) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(raw)


def _check_num_values(raw: bytes, max_bytes: int) -> None:
    """Refuse what is made of so many values that to parse it would hold everybody up.

    There is a comma between two values; those in texts count only where there are many in all.
    """
    most, most_numbers = max_bytes // _MEAN_VALUE_BYTES, max_bytes // _MEAN_NUMBER_BYTES
    if raw.count(b",") <= most or _is_of_few_values(raw, most, most_numbers):
        return
    message = (
        f"The request body holds more than {most} JSON values, or {most_numbers} with the numbers "
        "in lists of nothing else."
    )
    raise BodyError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "request_too_large", message)


def _is_of_few_values(raw: bytes, most: int, most_numbers: int) -> bool:
    """Cheap looks at all bytes come first, lest the costly ones take as long as the parser."""
    if b"\\" in raw:  # without these every quote begins or ends a text
        raw = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    if raw.count(b'"') > 4 * most:  # a name and a value have two each
        return False
    outside = b"t".join(raw.split(b'"')[::2])  # t for a text: a list of them is not of numbers
    if outside.count(b",") > most_numbers or outside.count(b"[") + outside.count(b"{") > most:
        return False
    return _FLAT_NUMBERS.sub(b"", outside).count(b",") <= most


def _too_large(max_bytes: int) -> BodyError:
    message = f"The request body is larger than {max_bytes} bytes."
    return BodyError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "request_too_large", message)


def request_error(error: ValidationError) -> RequestError:
    """The most specific of pydantic's errors (a union reports one per branch), naming its field."""
    details = error.errors(include_input=False, include_url=False, include_context=False)
    detail = max(details, key=lambda each: len(each["loc"]))
    if detail["type"] == "json_invalid":
        return RequestError("The request body is not valid JSON.", code="invalid_json")
    param = _path(detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    code = "missing_required_parameter" if detail["type"] == "missing" else None
    text = f"{param}: {message[:1].lower()}{message[1:]}." if param else f"{message}."
    return RequestError(text, param=param, code=code)


def _path(location: tuple[int | str, ...]) -> str | None:
    """`("messages", 0, "role")` → `messages[0].role`; stops at anything a client made up."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif FIELD_NAME.fullmatch(part) and not _UNION_BRANCH.fullmatch(part):
            path += f".{part}" if path else part
        elif not _UNION_BRANCH.fullmatch(part):
            break
    return path or None
