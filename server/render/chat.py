"""Renders answers of /v1/chat/completions."""

from collections.abc import Iterator, Sequence
from typing import Any

from engine.request import RequestOutput, TokenLogprobs
from server.parsing.events import OutputEvent
from server.parsing.output_parser import OutputFormat, OutputParser
from server.parsing.reasoning_counter import ReasoningCounter
from server.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatFinishReason,
    ChatLogprobs,
    Delta,
    TokenAlternative,
    TokenLogprob,
)
from server.protocol.common import Usage
from server.render.chat_pieces import delta_of, message_of
from server.render.choices import ChoiceRenderer
from server.render.common import (
    MIN_LOGPROB,
    AnswerFrame,
    Chunk,
    finish_reason_name,
    piece_usage,
    request_metrics,
    total_usage,
    trace_tokens,
)
from server.render.event_shape import TextTemplate
from server.render.prompt_logprobs import prompt_logprobs


class ChatRenderer(ChoiceRenderer):
    """Renders one chat answer.

    In a stream, every choice has its role first, then the echo, the text's pieces and the end.
    """

    def __init__(self, frame: AnswerFrame, output_format: OutputFormat, echo: str = "") -> None:
        super().__init__(frame)
        self._echo = echo
        self._format = output_format
        self._parsers: dict[int, OutputParser] = {}  # by choice, of a stream
        self._counters: dict[int, ReasoningCounter] = {}  # by choice
        self._callers: set[int] = set()  # choices with tool calls

    def chunks(self, index: int, output: RequestOutput) -> Iterator[Chunk]:
        """Yield the chunks for one piece of one choice."""
        self._count(index, output)
        self._tally.add(index, output)
        if index not in self._parsers:
            self._parsers[index] = self._format.parser()
            yield from self._opening(index, output)
            if self._format.is_plain and not self._frame.has_more_than_text:
                self._templates[index] = TextTemplate(self._frame.event(_text_chunk, index))
        text = self.text_event(index, output)
        if text is not None:
            yield text
        else:
            yield from self._piece(index, output)
        if output.finish_reason is not None:
            yield self._end(index, output)

    def closing_chunks(self) -> Iterator[ChatCompletionChunk]:
        """Yield the usage chunk, if it was asked for."""
        if self._frame.has_usage:
            yield ChatCompletionChunk(
                **self._frame.head,
                choices=[],
                usage=self._usage(),
                metrics=request_metrics(self._frame, self._tally.draft_figures),
            )

    def answer(self, choices: Sequence[RequestOutput]) -> ChatCompletion:
        """Return the whole answer at once."""
        for index, output in enumerate(choices):
            self._count(index, output)
            self._tally.add(index, output)
        return ChatCompletion(
            **self._frame.head,
            choices=[self._choice(index, output) for index, output in enumerate(choices)],
            usage=self._usage(),
            prompt_token_ids=self._frame.prompt_ids(0),
            prompt_logprobs=prompt_logprobs(self._frame, choices[0]),
            metrics=request_metrics(self._frame, choices[0].draft_figures),
        )

    def _opening(self, index: int, output: RequestOutput) -> Iterator[Chunk]:
        """Yield the role, then the echo."""
        if self._frame.has_more_than_text:
            choice = ChatChunkChoice(index=index, delta=Delta(role="assistant", content=""))
            first = self._chunk(choice, output)
            first.prompt_token_ids = self._frame.prompt_ids(index)
            yield first
        else:
            yield self._frame.event(_opening_chunk, index)
        if self._echo:
            yield self._chunk(ChatChunkChoice(index=index, delta=Delta(content=self._echo)), output)

    def _piece(self, index: int, output: RequestOutput) -> Iterator[ChatCompletionChunk]:
        """Yield a chunk with all that there is to show of a piece, if anything."""
        frame = self._frame
        delta = delta_of(self._events(index, output))
        if delta.tool_calls:
            self._callers.add(index)
        is_empty = delta == Delta()
        token_ids = frame.token_ids(output)
        if not is_empty or output.logprobs or output.trace or token_ids:
            choice = ChatChunkChoice(
                index=index,
                delta=Delta(content="") if is_empty else delta,
                logprobs=_logprobs(frame, output.logprobs),
                token_ids=token_ids,
                early_exit_trace=trace_tokens(frame.tokenizer, output.trace),
            )
            yield self._chunk(choice, output)

    def _end(self, index: int, output: RequestOutput) -> Chunk:
        reason = self._finish_reason(output, index in self._callers)
        is_bare = self._frame.has_usage and not self._frame.has_more_than_text
        if is_bare and output.stop_reason is None:
            return self._frame.event(_end_chunk, index, reason)
        choice = ChatChunkChoice(
            index=index, delta=Delta(), finish_reason=reason, stop_reason=output.stop_reason
        )
        chunk = self._chunk(choice, output)
        if not self._frame.has_usage:
            chunk.metrics = request_metrics(self._frame, output.draft_figures)
        return chunk

    def _count(self, index: int, output: RequestOutput) -> None:
        if index not in self._counters:
            self._counters[index] = self._format.counter(self._frame.tokenizer)
        self._counters[index].push(output.token_ids)

    def _usage(self) -> Usage:
        num_reasoning_tokens = sum(each.num_tokens for each in self._counters.values())
        return total_usage(self._frame, self._tally, num_reasoning_tokens)

    def _events(self, index: int, output: RequestOutput) -> list[OutputEvent]:
        parser = self._parsers[index]
        events = parser.push(output.text)
        return events if output.finish_reason is None else [*events, *parser.finish()]

    def _choice(self, index: int, output: RequestOutput) -> ChatChoice:
        parser = self._format.parser()
        message = message_of([*parser.push(output.text), *parser.finish()])
        if self._echo:
            message.content = self._echo + (message.content or "")
        return ChatChoice(
            index=index,
            message=message,
            logprobs=_logprobs(self._frame, output.logprobs),
            finish_reason=self._finish_reason(output, message.tool_calls is not None),
            stop_reason=output.stop_reason,
            token_ids=self._frame.token_ids(output),
            early_exit_trace=trace_tokens(self._frame.tokenizer, output.trace),
        )

    def _finish_reason(self, output: RequestOutput, has_called: bool) -> ChatFinishReason:
        name = finish_reason_name(output.finish_reason)
        has_called = has_called and self._format.ends_by_calling
        return "tool_calls" if has_called and name == "stop" else name

    def _chunk(self, choice: ChatChunkChoice, output: RequestOutput) -> ChatCompletionChunk:
        num_reasoning_tokens = self._counters[choice.index].num_tokens
        return ChatCompletionChunk(
            **self._frame.head,
            choices=[choice],
            usage=piece_usage(self._frame, output, num_reasoning_tokens),
        )


def _opening_chunk(head: dict[str, Any], index: int) -> ChatCompletionChunk:
    return _bare_chunk(head, index, Delta(role="assistant", content=""))


def _text_chunk(head: dict[str, Any], index: int) -> ChatCompletionChunk:
    return _bare_chunk(head, index, Delta(content=TextTemplate.HOLE))


def _end_chunk(head: dict[str, Any], index: int, reason: ChatFinishReason) -> ChatCompletionChunk:
    return _bare_chunk(head, index, Delta(), reason)


def _bare_chunk(
    head: dict[str, Any], index: int, delta: Delta, reason: ChatFinishReason | None = None
) -> ChatCompletionChunk:
    """Make a chunk of a delta, and perhaps a finish reason, alone."""
    choice = ChatChunkChoice(index=index, delta=delta, finish_reason=reason)
    return ChatCompletionChunk(**head, choices=[choice])


def token_logprobs(frame: AnswerFrame, tokens: Sequence[TokenLogprobs]) -> list[TokenLogprob]:
    """Convert the tokens' log-probabilities to the form of the chat and responses APIs."""
    return [
        TokenLogprob(
            **_alternative(frame, token.token_id, token.logprob).model_dump(),
            top_logprobs=[_alternative(frame, *entry) for entry in token.top],
        )
        for token in tokens
    ]


def _logprobs(frame: AnswerFrame, tokens: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
    return ChatLogprobs(content=token_logprobs(frame, tokens)) if tokens else None


def _alternative(frame: AnswerFrame, token_id: int, logprob: float) -> TokenAlternative:
    return TokenAlternative(
        token=frame.token_name(token_id),
        logprob=max(logprob, MIN_LOGPROB),
        bytes=list(frame.tokenizer.token_bytes(token_id)),
    )
