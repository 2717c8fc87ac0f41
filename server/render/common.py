"""What the three generating endpoints' answers share: frame, usage, draft figures, traces."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from pydantic import BaseModel

from engine import Tokenizer
from engine.request import DraftFigures, FinishReason, RequestOutput, TokenTrace
from server.errors import ErrorResponse, Failure
from server.protocol.common import (
    CompletionTokensDetails,
    EarlyExitMetrics,
    FinishReasonName,
    PromptTokensDetails,
    RequestMetrics,
    SpeculativeDecoding,
    TraceDraft,
    TraceToken,
    Usage,
)
from server.render.event_shapes import EventShapes

MIN_LOGPROB = -9999.0  # stands for minus infinity, which JSON lacks (as in vLLM)

_FINISH_REASONS: dict[FinishReason, FinishReasonName] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerFrame:
    """What is known of an answer before its first token."""

    answer_id: str
    created: int  # Unix time
    model: str
    tokenizer: Tokenizer
    num_choices: int  # over all prompts
    num_prompt_tokens: int  # every prompt once
    num_choices_per_prompt: int = 1
    max_draft_tokens: int  # longest possible run of drafts
    prompts: Sequence[Sequence[int]] = ()  # by choice
    num_prompt_logprobs: int | None = None  # top ones per prompt token; None: not asked for
    has_token_ids: bool = False  # of prompts and outputs
    has_token_names: bool = True  # False: log-probabilities name tokens by their ids
    has_usage: bool = False  # in streams: a last chunk with the usage
    has_continuous_usage: bool = False  # in streams: usage on every chunk
    shapes: EventShapes = field(default_factory=EventShapes)

    @property
    def head(self) -> dict[str, Any]:
        """The fields that every answer and chunk begins with."""
        return {"id": self.answer_id, "created": self.created, "model": self.model}

    def event(self, make: Callable[..., BaseModel], *about: object) -> bytes:
        """Return the event of the chunk `make(head, *about)`, with this answer's head.

        Events of other answers differ in the head alone, so the rest is encoded only once.
        """
        shape = self.shapes.get(make, self.model, *about)
        return shape.fill(self.answer_id, self.created)

    def prompt_ids(self, index: int) -> list[int] | None:
        """Return a choice's prompt, if token ids were asked for."""
        return list(self.prompts[index]) if self.has_token_ids else None

    def token_ids(self, output: RequestOutput) -> list[int] | None:
        """Return a piece's tokens, if token ids were asked for."""
        return list(output.token_ids) if self.has_token_ids else None

    @property
    def has_more_than_text(self) -> bool:
        """Whether a stream shows more of every piece than its text: token ids or usage."""
        return self.has_token_ids or self.has_continuous_usage

    def token_name(self, token_id: int) -> str:
        """Return the name that log-probabilities give a token."""
        if self.has_token_names:
            return self.tokenizer.token_text(token_id)
        return f"token_id:{token_id}"


Chunk: TypeAlias = BaseModel | bytes  # a chunk, or its event already encoded


class Renderer(ABC):
    """Turns outputs into what one endpoint sends. Stateful: one per answer."""

    end_mark: ClassVar[str | None] = "[DONE]"  # the data of a stream's last event

    def opening_chunks(self) -> Iterable[Chunk]:
        """Return what a stream begins with, before the first piece."""
        return ()

    def text_event(self, index: int, output: RequestOutput) -> bytes | None:
        """Encode the text of a piece that is nothing but text, as nearly all are.

        Unless the piece ends its choice, this is its only event.

        Returns:
            The encoded event; None if `chunks` has to be used.
        """
        return None

    @abstractmethod
    def chunks(self, index: int, output: RequestOutput) -> Iterable[Chunk]:
        """Return the chunks for one piece of one choice."""

    @abstractmethod
    def closing_chunks(self) -> Iterable[Chunk]:
        """Return what follows when every choice has ended."""

    def failure_chunks(self, failure: Failure) -> Iterable[Chunk]:
        """Return what follows when the generation failed after the stream had begun."""
        yield ErrorResponse(error=failure.error)

    @abstractmethod
    def answer(self, choices: Sequence[RequestOutput]) -> BaseModel:
        """Return the whole answer at once, from every choice's gathered output."""


@dataclass(slots=True)
class StreamTally:
    """The counts and figures of an answer's pieces that its end reports."""

    num_output_tokens: dict[int, int] = field(default_factory=dict)  # by choice
    num_cached_tokens: dict[int, int] = field(default_factory=dict)  # by choice
    draft_figures: DraftFigures | None = None

    def add(self, index: int, output: RequestOutput) -> None:
        """Take note of a piece."""
        self.num_output_tokens[index] = output.num_output_tokens
        self.num_cached_tokens[index] = output.num_cached_tokens
        self.draft_figures = output.draft_figures or self.draft_figures


def finish_reason_name(reason: FinishReason | None) -> FinishReasonName:
    """Return OpenAI's word for how a choice ended."""
    assert reason in _FINISH_REASONS, f"not an end to show a client: {reason}"
    return _FINISH_REASONS[reason]


def total_usage(frame: AnswerFrame, tally: StreamTally, num_reasoning_tokens: int = 0) -> Usage:
    """Return the counts of the whole answer: the output of every choice, each prompt once."""
    # The choices of a prompt share its blocks: what the others found there, the first one computed.
    firsts = range(0, frame.num_choices, frame.num_choices_per_prompt)
    return usage(
        frame.num_prompt_tokens,
        sum(tally.num_output_tokens.values()),
        sum(tally.num_cached_tokens.get(index, 0) for index in firsts),
        num_reasoning_tokens,
    )


def usage(
    num_prompt_tokens: int,
    num_output_tokens: int,
    num_cached_tokens: int,
    num_reasoning_tokens: int = 0,
) -> Usage:
    """Return token counts as clients know them."""
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_output_tokens,
        total_tokens=num_prompt_tokens + num_output_tokens,
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=num_reasoning_tokens),
        prompt_tokens_details=PromptTokensDetails(cached_tokens=num_cached_tokens),
    )


def piece_usage(
    frame: AnswerFrame, output: RequestOutput, num_reasoning_tokens: int = 0
) -> Usage | None:
    """Return the choice's own counts so far, if a stream carries them on every chunk."""
    if not frame.has_continuous_usage:
        return None
    return usage(
        output.num_prompt_tokens,
        output.num_output_tokens,
        output.num_cached_tokens,
        num_reasoning_tokens,
    )


def request_metrics(frame: AnswerFrame, figures: DraftFigures | None) -> RequestMetrics | None:
    """Return the answer's draft figures; None unless it has a single choice."""
    if figures is None or frame.num_choices != 1:
        return None
    histogram = list(figures.acceptance_histogram)
    histogram += [0] * (frame.max_draft_tokens + 1 - len(histogram))
    return RequestMetrics(
        speculative_decoding=SpeculativeDecoding(
            mean_acceptance_length=figures.mean_acceptance_length,
            draft_acceptance_rate=figures.acceptance_rate,
            acceptance_histogram=histogram,
            num_spec_steps=figures.num_steps,
            num_accepted_draft_tokens=figures.num_accepted_tokens,
            num_draft_tokens=figures.num_draft_tokens,
            num_spec_tokens=len(histogram) - 1,
        ),
        early_exit=EarlyExitMetrics(
            accepted_by_layer=dict(figures.accepted_by_layer),
            drafted_by_layer=dict(figures.drafted_by_layer),
            reason=figures.policy.reason,
            policy=figures.policy.text,
        ),
    )


def trace_tokens(tokenizer: Tokenizer, trace: Sequence[TokenTrace]) -> list[TraceToken] | None:
    """Return where the tokens came from; None without a trace."""
    if not trace:
        return None
    return [
        TraceToken(
            token_id=token.token_id,
            token=tokenizer.token_text(token.token_id),
            bytes=list(tokenizer.token_bytes(token.token_id)),
            exit_layer=token.exit_layer,
            confidence=token.confidence,
            source=token.source,
            rejected=[
                TraceDraft(
                    token_id=draft.token_id,
                    token=tokenizer.token_text(draft.token_id),
                    bytes=list(tokenizer.token_bytes(draft.token_id)),
                    exit_layer=draft.exit_layer,
                    confidence=draft.confidence,
                    source=draft.source,
                )
                for draft in token.rejected
            ],
        )
        for token in trace
    ]


def has_content(output: RequestOutput) -> bool:
    """Whether a piece has anything to show: text may be held back while tokens arrive."""
    return bool(output.text or output.logprobs or output.trace)
