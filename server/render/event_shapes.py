"""The shapes of a server's events, each made when an answer first has such an event."""

from collections.abc import Callable
from functools import lru_cache

from pydantic import BaseModel

from server.render.event_shape import EventShape

_MOST = 256  # there is one per choice, and a request may ask for many


class EventShapes:
    """One per application; keeps those that were asked for lately."""

    def __init__(self) -> None:
        self._made = lru_cache(maxsize=_MOST)(_shape)

    def get(self, make: Callable[..., BaseModel], model: str, *about: object) -> EventShape:
        """The shape of what `make` says about these, from an answer's first fields on."""
        return self._made(make, model, *about)


def _shape(make: Callable[..., BaseModel], model: str, *about: object) -> EventShape:
    return EventShape(lambda head: make(head, *about), model)
