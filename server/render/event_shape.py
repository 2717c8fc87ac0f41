"""Events that differ little from others: encoded once, then filled in.

Building and encoding a chunk would otherwise be most of what a token costs the server. In a short
answer, such chunks are half of the cost of rendering.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from msgspec import json
from pydantic import BaseModel

from server.render.event import event

_ID = "\ue001"  # placeholder: a private-use character that the server writes nowhere else
_CREATED = -1  # placeholder: a time that no answer has


class EventShape:
    """An event without its answer's id and time: the same for all answers of a model."""

    def __init__(self, make: Callable[[dict[str, Any]], BaseModel], model: str) -> None:
        """
        Args:
            make: Makes the chunk that has the given fields as its first.
            model: The answers' model.
        """
        spelled = event(make({"id": _ID, "created": _CREATED, "model": model}))
        self._before, _, rest = spelled.partition(_ID.encode())
        self._between, found, self._after = rest.partition(b'"created":%d' % _CREATED)
        assert found, "a chunk begins with its answer's id and time"

    def fill(self, answer_id: str, created: int) -> bytes:
        """Return the event of one answer, whose id must need no escapes."""
        return b'%b%b%b"created":%d%b' % (
            self._before,
            answer_id.encode(),
            self._between,
            created,
            self._after,
        )


class TextTemplate:
    """An event that differs from others of its choice in the text alone."""

    HOLE: ClassVar[str] = "\ue000"  # stands where the text goes

    def __init__(self, spelled: bytes) -> None:
        """
        Args:
            spelled: The encoded event with `HOLE` as its text.
        """
        self._before, found, self._after = spelled.rpartition(json.encode(self.HOLE))
        assert found, "a template has a hole"

    def fill(self, text: str) -> bytes:
        """Return the event with this text."""
        return self._before + json.encode(text) + self._after
