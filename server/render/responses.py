"""Answers of /v1/responses: one message, whole or as its numbered events."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from engine.request import FinishReason, RequestOutput, TokenTrace
from server.errors import Failure
from server.protocol.chat import TokenLogprob
from server.protocol.response_events import (
    AnyEvent,
    ContentPartEvent,
    Lifecycle,
    OutputItemEvent,
    StreamError,
    TextDelta,
    TextDone,
)
from server.protocol.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    Response,
    ResponseFailure,
    ResponsesRequest,
    ResponseUsage,
)
from server.render.chat import token_logprobs
from server.render.common import AnswerFrame, Renderer, request_metrics, trace_tokens


class ResponsesRenderer(Renderer):
    """One response. Its text is one part of one message."""

    end_mark: ClassVar[str | None] = None

    def __init__(self, body: ResponsesRequest, frame: AnswerFrame) -> None:
        self._body = body
        self._frame = frame
        self._item_id = f"msg_{frame.answer_id.partition('_')[2]}"
        self._place: dict[str, Any] = {
            "item_id": self._item_id,
            "output_index": 0,
            "content_index": 0,
        }
        self._num_events = 0
        self._has_begun = False
        self._text = ""
        self._logprobs: list[TokenLogprob] = []
        self._trace: list[TokenTrace] = []
        self._last: RequestOutput | None = None

    def opening_chunks(self) -> Iterator[AnyEvent]:
        """The response, with nothing in it yet."""
        for kind in ("response.created", "response.in_progress"):
            yield self._lifecycle(kind, self._response("in_progress", []))

    def chunks(self, index: int, output: RequestOutput) -> Iterator[AnyEvent]:
        """The events for one piece."""
        if not self._has_begun:
            yield from self._begin_message()
        logprobs = token_logprobs(self._frame, output.logprobs)
        self._note(output, logprobs)
        if output.text or logprobs:
            yield TextDelta(
                sequence_number=self._number(), delta=output.text, logprobs=logprobs, **self._place
            )

    def closing_chunks(self) -> Iterator[AnyEvent]:
        """The message's end, then the response's."""
        assert self._last is not None, "a generation has a last output"
        yield from self._end_message()
        yield self._final(self._last)

    def failure_chunks(self, failure: Failure) -> Iterator[AnyEvent]:
        """The error, then the response with what there was of it."""
        yield StreamError(
            sequence_number=self._number(),
            code=failure.code,
            message=failure.message,
            param=failure.param,
        )
        output = [self._message("incomplete")] if self._has_begun else []
        response = self._response("failed", output)
        response.error = ResponseFailure(code="server_error", message=failure.message)
        yield self._lifecycle("response.failed", response)

    def answer(self, choices: Sequence[RequestOutput]) -> Response:
        """The whole response at once."""
        (output,) = choices
        self._note(output, token_logprobs(self._frame, output.logprobs))
        return self._ended(output)

    def _note(self, output: RequestOutput, logprobs: list[TokenLogprob]) -> None:
        self._text += output.text
        self._logprobs += logprobs
        self._trace += output.trace
        self._last = output

    def _begin_message(self) -> Iterator[AnyEvent]:
        self._has_begun = True
        item = OutputMessage(id=self._item_id, status="in_progress", content=[])
        yield OutputItemEvent(
            type="response.output_item.added",
            sequence_number=self._number(),
            output_index=0,
            item=item,
        )
        yield ContentPartEvent(
            type="response.content_part.added",
            sequence_number=self._number(),
            part=OutputText(text=""),
            **self._place,
        )

    def _end_message(self) -> Iterator[AnyEvent]:
        assert self._last is not None
        message = self._message(_status(self._last))
        (part,) = message.content
        yield TextDone(
            sequence_number=self._number(),
            text=part.text,
            logprobs=part.logprobs,
            **self._place,
        )
        yield ContentPartEvent(
            type="response.content_part.done",
            sequence_number=self._number(),
            part=part,
            **self._place,
        )
        yield OutputItemEvent(
            type="response.output_item.done",
            sequence_number=self._number(),
            output_index=0,
            item=message,
        )

    def _final(self, last: RequestOutput) -> Lifecycle:
        response = self._ended(last)
        return self._lifecycle(f"response.{response.status}", response)

    def _ended(self, last: RequestOutput) -> Response:
        status = _status(last)
        response = self._response(status, [self._message(status)])
        if status == "incomplete":
            response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
        response.usage = ResponseUsage(
            input_tokens=last.num_prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=last.num_cached_tokens),
            output_tokens=last.num_output_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
            total_tokens=last.num_prompt_tokens + last.num_output_tokens,
        )
        response.metrics = request_metrics(self._frame, last.draft_figures)
        response.early_exit_trace = trace_tokens(self._frame.tokenizer, self._trace)
        return response

    def _message(self, status: Literal["completed", "incomplete"]) -> OutputMessage:
        part = OutputText(text=self._text, logprobs=self._logprobs)
        return OutputMessage(id=self._item_id, status=status, content=[part])

    def _response(
        self,
        status: Literal["in_progress", "completed", "incomplete", "failed"],
        output: list[OutputMessage],
    ) -> Response:
        """The response as of now, with what was asked for said again."""
        body, frame = self._body, self._frame
        text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
        reasoning = body.reasoning
        return Response(
            id=frame.answer_id,
            created_at=frame.created,
            status=status,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=body.max_tool_calls,
            metadata=body.metadata or {},
            model=frame.model,
            output=output,
            parallel_tool_calls=body.parallel_tool_calls is not False,
            prompt_cache_key=body.prompt_cache_key,
            reasoning={"effort": reasoning.effort if reasoning else None, "summary": None},
            safety_identifier=body.safety_identifier,
            temperature=1.0 if body.temperature is None else body.temperature,
            text={"format": {"type": "text"}, **text},
            tool_choice=body.tool_choice or "auto",
            tools=body.tools or [],
            top_logprobs=body.top_logprobs or 0,
            top_p=1.0 if body.top_p is None else body.top_p,
            user=body.user,
        )

    def _lifecycle(self, kind: Any, response: Response) -> Lifecycle:
        return Lifecycle(type=kind, sequence_number=self._number(), response=response)

    def _number(self) -> int:
        self._num_events += 1
        return self._num_events - 1


def _status(last: RequestOutput) -> Literal["completed", "incomplete"]:
    return "incomplete" if last.finish_reason is FinishReason.LENGTH else "completed"
