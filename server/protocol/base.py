"""The base of all request types."""

import json
from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue

# Conversations are not searched for unknown fields: their items carry other servers' answers back,
# which may hold anything.
_CONVERSATIONS = frozenset({"messages", "input"})


def _of_finite_numbers(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Check what pydantic, reading JSON, does not: it lets NaN, Infinity and 1e999 through here."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError("should hold finite numbers only") from None
    return value


JsonObject = Annotated[dict[str, JsonValue], AfterValidator(_of_finite_numbers)]


class RequestModel(BaseModel):
    """Base of what clients send: strict types, finite numbers, unknown fields in `model_extra`."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


def unknown_inside(body: RequestModel) -> Iterator[str]:
    """Yield the unknown fields of the objects inside a body, such as `tools[0].function.nam`.

    The body's own are not among them.
    """
    for path, part in _parts(body):
        yield from (f"{path}.{name}" for name in part.model_extra or {})
        yield from (f"{path}.{name}" for name in unknown_inside(part))


def _parts(body: RequestModel) -> Iterator[tuple[str, RequestModel]]:
    """Yield the objects directly inside a body, each with its path."""
    for name, value in body:
        if isinstance(value, RequestModel):
            yield name, value
        elif isinstance(value, list) and name not in _CONVERSATIONS:
            parts = value if value and isinstance(value[0], RequestModel) else []
            yield from ((f"{name}[{place}]", part) for place, part in enumerate(parts))
