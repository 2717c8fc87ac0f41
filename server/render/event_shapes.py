"""A cache of the shapes of events, each made when an answer first has such an event."""

from collections.abc import Callable
from functools import lru_cache

from pydantic import BaseModel

from server.render.event_shape import EventShape

_MOST = 256  # shapes that are kept; each index of a choice has its own, and requests may have many


class EventShapes:
    """The recently used shapes of one application's events."""

    def __init__(self) -> None:
        self._made = lru_cache(maxsize=_MOST)(_shape)

    def get(self, make: Callable[..., BaseModel], model: str, *about: object) -> EventShape:
        """Return the shape of the chunks `make(head, *about)`."""
        return self._made(make, model, *about)


def _shape(make: Callable[..., BaseModel], model: str, *about: object) -> EventShape:
    return EventShape(lambda head: make(head, *about), model)
