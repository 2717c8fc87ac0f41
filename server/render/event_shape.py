"""Events that differ from others in little: encoded once, and filled in.

Most of what a token costs the server would else be building and encoding a chunk; of a short
answer, half of what rendering costs are such chunks.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from msgspec import json
from pydantic import BaseModel

from server.render.event import event

_ID = "\ue001"  # private characters: in nothing else that the server writes
_CREATED = -1  # no answer is as old


class EventShape:
    """An event of an answer without its id and time: the same for all answers of a model."""

    def __init__(self, make: Callable[[dict[str, Any]], BaseModel], model: str) -> None:
        """Args: make: Chunk with these as its first fields."""
        spelled = event(make({"id": _ID, "created": _CREATED, "model": model}))
        self._before, _, rest = spelled.partition(_ID.encode())
        self._between, found, self._after = rest.partition(b'"created":%d' % _CREATED)
        assert found, "a chunk begins with its answer's id and time"

    def fill(self, answer_id: str, created: int) -> bytes:
        """The event of this answer, whose id needs no escapes."""
        return b'%b%b%b"created":%d%b' % (
            self._before,
            answer_id.encode(),
            self._between,
            created,
            self._after,
        )


class TextTemplate:
    """An event that differs from others of its answer in its text alone."""

    HOLE: ClassVar[str] = "\ue000"  # stands where the text goes

    def __init__(self, spelled: bytes) -> None:
        """Args: spelled: The event with `HOLE` for its text."""
        self._before, found, self._after = spelled.rpartition(json.encode(self.HOLE))
        assert found, "a template has a hole"

    def fill(self, text: str) -> bytes:
        """The event with this text."""
        return self._before + json.encode(text) + self._after
