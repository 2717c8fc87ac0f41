"""Turns a request's raw body into a checked wire type, or into an error that names the field.

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
# Per so many bytes of the largest allowed body, a body may hold one JSON value, or one number in a
# list of numbers. A value takes far longer to parse than a byte, and parsing blocks all else,
# whatever thread does it. Token ids in a list are the cheapest values, and the most numerous.
_MEAN_VALUE_BYTES = 256
_MEAN_NUMBER_BYTES = 16
_FLAT_NUMBERS = re.compile(rb"\[[-+.0-9eE,\s]*\]")
# Components of an error's location that name a branch of a union, such as a class, not a field.
_UNION_BRANCH = re.compile(r"(str|int|float|bool|none|list\[.*|dict\[.*|function-.*|[A-Z]\w*)")
# Names that may be repeated in an error; any others may be whatever a client made up.
FIELD_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

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
        return await _receive(request, max_bytes)  # never waits, so it needs no timeout
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
    """Refuse a body of so many values that parsing it would hold up all other requests.

    Values are counted by the commas between them. Only where that gives too many does a second,
    costlier count leave out the commas inside strings.
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
    """Whether the body keeps both limits, commas inside strings not counted.

    Cheap scans come first, so that the costly ones never take as long as the parser would.
    """
    if b"\\" in raw:  # without escapes, every quote begins or ends a string
        raw = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    if raw.count(b'"') > 4 * most:  # a key and its value have two each
        return False
    # "t" stands for a string, so that a list of strings does not pass for a list of numbers.
    outside = b"t".join(raw.split(b'"')[::2])
    if outside.count(b",") > most_numbers or outside.count(b"[") + outside.count(b"{") > most:
        return False
    return _FLAT_NUMBERS.sub(b"", outside).count(b",") <= most


def _too_large(max_bytes: int) -> BodyError:
    message = f"The request body is larger than {max_bytes} bytes."
    return BodyError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "request_too_large", message)


def request_error(error: ValidationError) -> RequestError:
    """Translate the most specific of pydantic's errors (a union reports one per branch).

    Of those equally deep, one about a value of the right type is about the branch that was meant.
    """
    details = error.errors(include_input=False, include_url=False, include_context=False)
    detail = max(details, key=lambda each: (len(each["loc"]), not each["type"].endswith("_type")))
    if detail["type"] == "json_invalid":
        return RequestError("The request body is not valid JSON.", code="invalid_json")
    param = _path(detail["loc"])
    message = detail["msg"].removeprefix("Value error, ").replace(" after validation,", ",")
    code = "missing_required_parameter" if detail["type"] == "missing" else None
    text = f"{param}: {message[:1].lower()}{message[1:]}." if param else f"{message}."
    return RequestError(text, param=param, code=code)


def _path(location: tuple[int | str, ...]) -> str | None:
    """Spell `("messages", 0, "role")` as `messages[0].role`, up to any name a client made up."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif FIELD_NAME.fullmatch(part) and not _UNION_BRANCH.fullmatch(part):
            path += f".{part}" if path else part
        elif not _UNION_BRANCH.fullmatch(part):
            break
    return path or None
