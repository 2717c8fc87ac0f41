"""Renders answers of /v1/responses: thoughts, messages and calls, whole or as numbered events."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Literal

from engine.request import FinishReason, RequestOutput, TokenTrace
from server.errors import Failure
from server.parsing.output_parser import OutputFormat
from server.protocol.response_events import AnyEvent, ItemEvent, Lifecycle, StreamError
from server.protocol.responses import (
    FunctionChoice,
    FunctionTool,
    IncompleteDetails,
    InputTokensDetails,
    MadeChoice,
    OfferedTool,
    OutputItem,
    OutputTokensDetails,
    Response,
    ResponseFailure,
    ResponsesRequest,
    ResponseStatus,
    ResponseUsage,
)
from server.render.common import AnswerFrame, Renderer, request_metrics, trace_tokens
from server.render.message_logprobs import MessageLogprobs
from server.render.response_items import EndStatus, ResponseItems
from server.sampling_defaults import SamplingDefaults


class ResponsesRenderer(Renderer):
    """Renders one response, with its items in the order in which the model wrote them."""

    end_mark: ClassVar[str | None] = None

    def __init__(
        self,
        body: ResponsesRequest,
        frame: AnswerFrame,
        output_format: OutputFormat,
        defaults: SamplingDefaults,
    ) -> None:
        self._body = body
        self._defaults = defaults
        self._frame = frame
        self._num_events = 0
        self._parser = output_format.parser()
        self._counter = output_format.counter(frame.tokenizer)
        self._logprobs = MessageLogprobs(frame, output_format)
        answer_hex = frame.answer_id.partition("_")[2]
        self._items = ResponseItems(answer_hex, self._number, self._logprobs.take)
        self._trace: list[TokenTrace] = []
        self._last: RequestOutput | None = None

    def opening_chunks(self) -> Iterator[AnyEvent]:
        """Yield the events that announce the response, with nothing in it yet."""
        for kind in ("response.created", "response.in_progress"):
            yield self._lifecycle(kind, self._response("in_progress", []))

    def chunks(self, index: int, output: RequestOutput) -> Iterator[ItemEvent]:
        """Yield the events for one piece."""
        self._counter.push(output.token_ids)
        self._logprobs.push(output.logprobs)
        self._trace += output.trace
        self._last = output
        yield from self._items.push(self._parser.push(output.text))

    def closing_chunks(self) -> Iterator[AnyEvent]:
        """Yield the events of the last item's end, then the response's."""
        assert self._last is not None, "a generation has a last output"
        yield from self._finish(self._last)
        response = self._ended(self._last)
        yield self._lifecycle(f"response.{response.status}", response)

    def failure_chunks(self, failure: Failure) -> Iterator[AnyEvent]:
        """Yield the error, then the failed response with the items so far."""
        yield StreamError(
            sequence_number=self._number(),
            code=failure.code,
            message=failure.message,
            param=failure.param,
        )
        response = self._response("failed", self._items.so_far())
        code = (
            "server_error"
            if failure.status >= HTTPStatus.INTERNAL_SERVER_ERROR
            else "invalid_prompt"
        )
        response.error = ResponseFailure(code=code, message=failure.message)
        yield self._lifecycle("response.failed", response)

    def answer(self, choices: Sequence[RequestOutput]) -> Response:
        """Return the whole response at once: what its events would have come to."""
        (output,) = choices
        for _ in (*self.chunks(0, output), *self._finish(output)):
            pass  # the events go nowhere; making them fills the items
        return self._ended(output)

    def _finish(self, last: RequestOutput) -> Iterator[ItemEvent]:
        self._logprobs.finish()
        yield from self._items.finish(self._parser.finish(), _status(last))

    def _ended(self, last: RequestOutput) -> Response:
        status = _status(last)
        response = self._response(status, self._items.so_far())
        if status == "incomplete":
            response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
        response.usage = ResponseUsage(
            input_tokens=last.num_prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=last.num_cached_tokens),
            output_tokens=last.num_output_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=self._counter.num_tokens),
            total_tokens=last.num_prompt_tokens + last.num_output_tokens,
        )
        response.metrics = request_metrics(self._frame, last.draft_figures)
        response.early_exit_trace = trace_tokens(self._frame.tokenizer, self._trace)
        return response

    def _response(self, status: ResponseStatus, output: list[OutputItem]) -> Response:
        """Make the response as of now, which repeats what was asked for or stands in for it."""
        body, frame, defaults = self._body, self._frame, self._defaults
        text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
        reasoning = body.reasoning
        return Response(
            id=frame.answer_id,
            created_at=frame.created,
            status=status,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens or defaults.max_new_tokens,
            max_tool_calls=body.max_tool_calls,
            metadata=body.metadata or {},
            model=frame.model,
            output=output,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            prompt_cache_key=body.prompt_cache_key,
            reasoning={"effort": reasoning.effort if reasoning else None, "summary": None},
            safety_identifier=body.safety_identifier,
            temperature=defaults.temperature if body.temperature is None else body.temperature,
            text={"format": {"type": "text"}, **text},
            tool_choice=_choice(body),
            tools=[_offered(tool) for tool in body.tools or []],
            top_logprobs=body.top_logprobs or 0,
            top_p=defaults.top_p if body.top_p is None else body.top_p,
            user=body.user,
        )

    def _lifecycle(self, kind: Any, response: Response) -> Lifecycle:
        return Lifecycle(type=kind, sequence_number=self._number(), response=response)

    def _number(self) -> int:
        self._num_events += 1
        return self._num_events - 1


def _status(last: RequestOutput) -> EndStatus:
    return "incomplete" if last.finish_reason is FinishReason.LENGTH else "completed"


def _choice(body: ResponsesRequest) -> Literal["none", "auto", "required"] | MadeChoice:
    asked = body.tool_choice
    if isinstance(asked, FunctionChoice):
        return MadeChoice(name=asked.name or "")
    return asked or "auto"


def _offered(tool: FunctionTool) -> OfferedTool:
    return OfferedTool(
        name=tool.name or "",
        description=tool.description,
        parameters=tool.parameters,
        strict=bool(tool.strict),
    )
