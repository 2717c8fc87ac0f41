"""The base of all request types."""

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

# Conversations are not searched for unknown fields: their items carry other servers' answers back,
# which may hold anything.
_CONVERSATIONS = frozenset({"messages", "input"})


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
