"""Answers of /v1/completions."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from engine.request import RequestOutput
from server.protocol.completions import Completion, CompletionChoice, CompletionLogprobs
from server.render.common import (
    MIN_LOGPROB,
    AnswerFrame,
    Chunk,
    Renderer,
    StreamTally,
    TextTemplate,
    finish_reason_name,
    has_content,
    piece_usage,
    request_metrics,
    total_usage,
    trace_tokens,
)


class CompletionRenderer(Renderer):
    """One answer: the text's pieces, then the end, for every choice of every prompt."""

    def __init__(self, frame: AnswerFrame) -> None:
        self._frame = frame
        self._tally = StreamTally()
        self._templates: dict[int, TextTemplate] = {}  # by choice
        self._text_offsets: dict[int, int] = defaultdict(int)  # by choice

    def chunks(self, index: int, output: RequestOutput) -> Iterator[Chunk]:
        """The chunks for one piece of one choice."""
        if index in self._templates and self._frame.is_text_only(output):
            self._tally.add(index, output)
            yield self._templates[index].fill(output.text)
            return
        prompt_ids = None
        if index not in self._tally.num_output_tokens:
            prompt_ids = self._frame.prompt_ids(index)
            self._templates[index] = self._template(index)
        self._tally.add(index, output)
        if has_content(output) or self._frame.token_ids(output):
            choice = self._choice(index, output)
            choice.prompt_token_ids, prompt_ids = prompt_ids, None
            yield self._chunk(choice, output)
        if output.finish_reason is not None:
            end = CompletionChoice(
                index=index,
                text="",
                finish_reason=finish_reason_name(output.finish_reason),
                stop_reason=output.stop_reason,
                prompt_token_ids=prompt_ids,
            )
            chunk = self._chunk(end, output)
            if not self._frame.has_usage:
                chunk.metrics = request_metrics(self._frame, output.draft_figures)
            yield chunk

    def closing_chunks(self) -> Iterator[Completion]:
        """The usage chunk, when asked for."""
        if self._frame.has_usage:
            yield Completion(
                **self._frame.head,
                choices=[],
                usage=total_usage(self._frame, self._tally),
                metrics=request_metrics(self._frame, self._tally.draft_figures),
            )

    def answer(self, choices: Sequence[RequestOutput]) -> Completion:
        """The whole answer at once."""
        rendered = []
        for index, output in enumerate(choices):
            self._tally.add(index, output)
            choice = self._choice(index, output)
            choice.finish_reason = finish_reason_name(output.finish_reason)
            choice.stop_reason = output.stop_reason
            choice.prompt_token_ids = self._frame.prompt_ids(index)
            rendered.append(choice)
        return Completion(
            **self._frame.head,
            choices=rendered,
            usage=total_usage(self._frame, self._tally),
            metrics=request_metrics(self._frame, choices[0].draft_figures),
        )

    def _choice(self, index: int, output: RequestOutput) -> CompletionChoice:
        return CompletionChoice(
            index=index,
            text=output.text,
            token_ids=self._frame.token_ids(output),
            logprobs=self._logprobs(index, output) if output.logprobs else None,
            early_exit_trace=trace_tokens(self._frame.tokenizer, output.trace),
        )

    def _template(self, index: int) -> TextTemplate:
        choice = CompletionChoice(index=index, text=TextTemplate.HOLE)
        return TextTemplate(Completion(**self._frame.head, choices=[choice]))

    def _chunk(self, choice: CompletionChoice, output: RequestOutput) -> Completion:
        return Completion(
            **self._frame.head, choices=[choice], usage=piece_usage(self._frame, output)
        )

    def _logprobs(self, index: int, output: RequestOutput) -> CompletionLogprobs:
        """The chosen token is always among the top ones, as evaluation tools expect."""
        name_of = self._frame.token_name
        logprobs = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token in output.logprobs:
            top: dict[str, float] = {}
            # Best first: where two tokens have the same name, the likelier one stays.
            for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
                top.setdefault(name_of(token_id), max(logprob, MIN_LOGPROB))
            logprobs.tokens.append(name_of(token.token_id))
            logprobs.token_logprobs.append(max(token.logprob, MIN_LOGPROB))
            logprobs.top_logprobs.append(top)
            logprobs.text_offset.append(self._text_offsets[index])
            text = self._frame.tokenizer.token_text(token.token_id)
            self._text_offsets[index] += len(text)
        return logprobs
