"""What the routes of one application share; there are no globals."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import Request

from engine.errors import RequestError
from server.body import FIELD_NAME
from server.convert import RequestLimits
from server.long_texts import LongTexts
from server.metrics import ServerMetrics
from server.observer import Observer
from server.render.event_shapes import EventShapes
from server.seeds import SeedSource
from server.service import InferenceService, ServedModel
from server.settings import ServerSettings

# Paths that may be repeated in an error; any others may be whatever a client made up.
_FIELD_PATH = re.compile(
    rf"(?:{FIELD_NAME.pattern}(?:\[[0-9]{{1,4}}\])?\.){{0,4}}{FIELD_NAME.pattern}"
)


@dataclass(frozen=True, slots=True)
class ServerContext:
    """The parts of one application that its routes use."""

    settings: ServerSettings
    service: InferenceService
    metrics: ServerMetrics
    observer: Observer
    seeds: SeedSource
    shapes: EventShapes = field(default_factory=EventShapes)
    texts: LongTexts = field(default_factory=LongTexts)

    def limits(self, model: ServedModel) -> RequestLimits:
        """Return what a request to `model` may ask for."""
        info = model.info
        return RequestLimits(
            max_model_len=info.max_model_len,
            vocab_size=info.vocab_size,
            max_draft_tokens=info.max_draft_tokens,
            max_logprobs=self.settings.max_logprobs,
            stream_interval=self.settings.stream_interval,
            defaults=model.defaults,
        )

    def note_unknown_fields(self, names: Sequence[str]) -> None:
        """Count a request's unknown fields; refuse them if the settings say so.

        Raises:
            RequestError: naming the first one.
        """
        if not names:
            return
        self.metrics.count_unknown_fields(len(names))
        if self.settings.reject_unknown_fields:
            param = names[0] if _FIELD_PATH.fullmatch(names[0]) else None
            message = "The request has a field that this server does not know."
            if param is not None:
                message = f"{param} is not a field that this server knows."
            raise RequestError(message, param=param, code="unknown_parameter")


def context_of(request: Request) -> ServerContext:
    """Return the context of the application that received a request."""
    context = request.app.state.context
    assert isinstance(context, ServerContext), "create_app sets it"
    return context
