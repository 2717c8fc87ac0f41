"""Turns a checked body and its prompts into an HTTP answer.

`generate_answer` serves the three generating endpoints (completions, chat completions, responses);
embeddings use `generate` alone.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from engine import AsyncEngine
from engine.errors import RequestError, TooManyChoices
from engine.request import GenerationRequest
from server.answer import streamed_answer, whole_answer
from server.connection import while_connected
from server.context import ServerContext
from server.convert import multiplying_param, to_generation_requests, truncated
from server.deadlines import Deadlines
from server.generations import Generations
from server.protocol.common import CompletionRequestBase, StreamOptions
from server.records import RequestRecord, record_of
from server.render.common import AnswerFrame, Renderer
from server.render.event_shapes import EventShapes
from server.service import ServedModel
from server.structures import AskedStructure


async def generate_answer(
    request: Request,
    context: ServerContext,
    model: ServedModel,
    body: CompletionRequestBase,
    prompts: Sequence[Sequence[int]],
    *,
    structure: AskedStructure | None,
    id_prefix: str,
    renderer_type: Callable[[AnswerFrame], Renderer],
) -> Response:
    """Generate every choice and answer, streamed or whole.

    Raises:
        RequestError: a value is out of range.
        EngineError: the engine refused or failed.
        ClientDisconnect: the client left.
    """
    limits = context.limits(model)
    prompts = truncated(body, prompts, limits)
    deadlines = _deadlines(context)
    if structure is not None:
        approve = partial(structure.approve, model.engine)
        await while_connected(request, deadlines.keep(approve))
    # The engine never gets the client's X-Request-Id: two requests may carry the same one.
    answer_id = f"{id_prefix}{secrets.token_hex(16)}"
    requests = to_generation_requests(
        body,
        prompts,
        limits,
        answer_id=answer_id,
        seed=context.seeds.draw(),
        structure=None if structure is None else structure.structure,
    )
    renderer = renderer_type(_frame(body, model, answer_id, prompts, requests, context.shapes))
    record = record_of(request)
    record.num_choices = body.n or 1
    record.num_generations_per_prompt = len(requests) // len(prompts)
    demanding = "allowed_token_ids" if body.allowed_token_ids else None
    if demanding is None and structure is not None:
        demanding = structure.param
    generations = generate(
        context,
        model.engine,
        requests,
        record,
        multiplying=multiplying_param(body),
        demanding=demanding,
        deadlines=deadlines,
    )
    if body.stream:
        settings = context.settings
        return await streamed_answer(
            request,
            generations,
            renderer,
            keep_alive_s=settings.sse_keep_alive_interval,
            queue_timeout_s=settings.queue_timeout,
        )
    return await whole_answer(request, generations, renderer)


def _frame(
    body: CompletionRequestBase,
    model: ServedModel,
    answer_id: str,
    prompts: Sequence[Sequence[int]],
    requests: Sequence[GenerationRequest],
    shapes: EventShapes,
) -> AnswerFrame:
    """Return what is known of the answer to these requests."""
    stream = body.stream_options or StreamOptions()
    has_usage = bool(stream.include_usage)
    return AnswerFrame(
        answer_id=answer_id,
        created=int(time.time()),
        model=body.model,
        tokenizer=model.tokenizer,
        num_choices=len(requests),
        num_prompt_tokens=sum(map(len, prompts)),
        num_choices_per_prompt=len(requests) // len(prompts),
        max_draft_tokens=model.info.max_draft_tokens,
        prompts=[each.prompt_token_ids for each in requests],
        num_prompt_logprobs=body.prompt_logprobs,
        has_token_ids=bool(body.return_token_ids),
        has_token_names=not body.return_tokens_as_token_ids,
        has_usage=has_usage,
        has_continuous_usage=has_usage and bool(stream.continuous_usage_stats),
        shapes=shapes,
    )


def generate(
    context: ServerContext,
    engine: AsyncEngine,
    requests: Sequence[GenerationRequest],
    record: RequestRecord,
    *,
    multiplying: str,
    most_at_once: int | None = None,
    demanding: str | None = None,
    deadlines: Deadlines | None = None,
) -> Generations:
    """Start the generations, which the caller has to close.

    Args:
        context: the application's parts.
        engine: the engine that runs them.
        requests: what to generate.
        record: the record of the HTTP request.
        multiplying: the parameter that an error names if they are more than can ever be queued.
        most_at_once: see `Generations`.
        demanding: see `Generations`.
        deadlines: the request's, if they run already.

    Raises:
        EngineError: the engine refused.
    """
    generations = Generations(
        engine,
        context.observer,
        requests,
        record,
        most_at_once=most_at_once,
        demanding=demanding,
    )
    try:
        generations.start(deadlines or _deadlines(context))
    except TooManyChoices as error:
        raise RequestError(str(error), param=multiplying) from None
    return generations


def _deadlines(context: ServerContext) -> Deadlines:
    return Deadlines(context.settings.queue_timeout, context.settings.request_timeout)
