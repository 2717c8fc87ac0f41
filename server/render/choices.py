"""What renderers of choices share: a fast path for pieces of a stream that are nothing but text."""

from engine.request import RequestOutput
from server.render.common import AnswerFrame, Renderer, StreamTally
from server.render.event_shape import TextTemplate


class ChoiceRenderer(Renderer):
    """Base of the renderers whose answers consist of choices."""

    def __init__(self, frame: AnswerFrame) -> None:
        self._frame = frame
        self._tally = StreamTally()
        self._templates: dict[int, TextTemplate] = {}  # of choices whose text is sent as it is

    def text_event(self, index: int, output: RequestOutput) -> bytes | None:
        """See `Renderer.text_event`."""
        template = self._templates.get(index)
        if template is None or not output.text or output.logprobs or output.trace:
            return None
        return template.fill(output.text)
