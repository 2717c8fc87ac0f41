"""Renders answers of /v1/completions."""

from collections.abc import Iterator, Sequence
from typing import Any

from engine.request import RequestOutput, TokenLogprobs
from server.protocol.completions import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from server.render.choices import ChoiceRenderer
from server.render.common import (
    MIN_LOGPROB,
    AnswerFrame,
    Chunk,
    finish_reason_name,
    has_content,
    piece_usage,
    request_metrics,
    total_usage,
    trace_tokens,
)
from server.render.event_shape import TextTemplate
from server.render.prompt_logprobs import prompt_logprobs, with_prompt_logprobs
from server.render.text_offsets import OffsetCounter, offsets_in


class CompletionRenderer(ChoiceRenderer):
    """Renders one answer.

    In a stream, every choice of every prompt has its text's pieces, then the end. With `echo`, the
    first piece begins with the prompt.
    """

    def __init__(self, body: CompletionRequest, frame: AnswerFrame) -> None:
        super().__init__(frame)
        self._body = body
        self._begun: set[int] = set()  # choices of which a piece has come
        self._offsets: dict[int, OffsetCounter] = {}  # by choice

    def chunks(self, index: int, output: RequestOutput) -> Iterator[Chunk]:
        """Yield the chunks for one piece of one choice."""
        is_first = index not in self._begun
        self._begun.add(index)
        if is_first and not self._frame.has_more_than_text:
            self._templates[index] = TextTemplate(self._frame.event(_text_chunk, index))
        prompt_ids = self._frame.prompt_ids(index) if is_first else None
        has_echo = is_first and bool(self._body.echo)
        text = None if has_echo else self.text_event(index, output)
        if text is not None:
            yield text
        elif has_echo or has_content(output) or self._frame.token_ids(output):
            choice = self._choice(index, output, has_echo=has_echo)
            choice.prompt_token_ids, prompt_ids = prompt_ids, None
            yield self._chunk(choice, output)
        self._tally.add(index, output)
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
        """Yield the usage chunk, if it was asked for."""
        if self._frame.has_usage:
            yield Completion(
                **self._frame.head,
                choices=[],
                usage=total_usage(self._frame, self._tally),
                metrics=request_metrics(self._frame, self._tally.draft_figures),
            )

    def answer(self, choices: Sequence[RequestOutput]) -> Completion:
        """Return the whole answer at once."""
        choices = with_prompt_logprobs(choices, self._frame.num_choices_per_prompt)
        rendered = []
        for index, output in enumerate(choices):
            self._tally.add(index, output)
            choice = self._choice(index, output, has_echo=bool(self._body.echo))
            choice.finish_reason = finish_reason_name(output.finish_reason)
            choice.stop_reason = output.stop_reason
            choice.prompt_token_ids = self._frame.prompt_ids(index)
            choice.prompt_logprobs = prompt_logprobs(self._frame, output)
            rendered.append(choice)
        return Completion(
            **self._frame.head,
            choices=rendered,
            usage=total_usage(self._frame, self._tally),
            metrics=request_metrics(self._frame, choices[0].draft_figures),
        )

    def _choice(self, index: int, output: RequestOutput, *, has_echo: bool) -> CompletionChoice:
        prompt = self._prompt_text(index) if has_echo else ""
        return CompletionChoice(
            index=index,
            text=prompt + output.text,
            token_ids=self._frame.token_ids(output),
            logprobs=self._logprobs(index, output, prompt, has_echo=has_echo),
            early_exit_trace=trace_tokens(self._frame.tokenizer, output.trace),
        )

    def _chunk(self, choice: CompletionChoice, output: RequestOutput) -> Completion:
        return Completion(
            **self._frame.head, choices=[choice], usage=piece_usage(self._frame, output)
        )

    def _prompt_text(self, index: int) -> str:
        """Return the prompt as it was sent; decode its tokens if it came as ids or may be cut."""
        given = self._body.prompt[index // self._frame.num_choices_per_prompt]
        if isinstance(given, str) and self._body.truncate_prompt_tokens is None:
            return given
        return self._frame.tokenizer.decode(
            self._frame.prompts[index], skip_special_tokens=self._skips_special
        )

    def _logprobs(
        self, index: int, output: RequestOutput, prompt: str, *, has_echo: bool
    ) -> CompletionLogprobs | None:
        """Return the tokens' log-probabilities, those of an echoed prompt first."""
        if self._body.logprobs is None or not (has_echo or output.logprobs):
            return None
        logprobs = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        if index not in self._offsets:
            self._offsets[index] = OffsetCounter(
                self._frame.tokenizer, len(prompt), skips_special=self._skips_special
            )
        if has_echo:
            prompt_ids = self._frame.prompts[index]
            logprobs.text_offset = offsets_in(self._frame.tokenizer, prompt_ids, prompt)
            logprobs.tokens.append(self._frame.token_name(prompt_ids[0]))
            logprobs.token_logprobs.append(None)
            logprobs.top_logprobs.append(None)
            for token in output.prompt_logprobs:
                self._add(logprobs, token)
        for token in output.logprobs:
            logprobs.text_offset.append(self._offsets[index].push(token.token_id))
            self._add(logprobs, token)
        return logprobs

    def _add(self, logprobs: CompletionLogprobs, token: TokenLogprobs) -> None:
        """Add a token; it is always among its own top ones, as evaluation tools expect."""
        name_of = self._frame.token_name
        top: dict[str, float] = {}
        # Best first: where two tokens have the same name, the likelier one stays.
        num_top = self._body.logprobs or 0
        for token_id, logprob in (*token.top[:num_top], (token.token_id, token.logprob)):
            top.setdefault(name_of(token_id), max(logprob, MIN_LOGPROB))
        logprobs.tokens.append(name_of(token.token_id))
        logprobs.token_logprobs.append(max(token.logprob, MIN_LOGPROB))
        logprobs.top_logprobs.append(top)

    @property
    def _skips_special(self) -> bool:
        return self._body.skip_special_tokens is not False


def _text_chunk(head: dict[str, Any], index: int) -> Completion:
    """Make the chunk of a piece that is nothing but text."""
    choice = CompletionChoice(index=index, text=TextTemplate.HOLE)
    return Completion(**head, choices=[choice])
