"""POST /v1/embeddings."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Literal

from fastapi import APIRouter, Request, Response

from engine.errors import PromptTooLong, RequestError
from engine.request import GenerationRequest, SamplingParams
from server.answer import gather_choices
from server.body import parse_body
from server.connection import while_connected
from server.context import ServerContext, context_of
from server.convert import check_token_ids, check_truncation, truncated
from server.generation import generate
from server.openapi import accepts, computes
from server.plain_route import PlainRoute
from server.prompts import encode_prompts
from server.protocol.common import refuse_unsupported
from server.protocol.embeddings import Embeddings, EmbeddingsRequest
from server.records import record_of
from server.render.embeddings import render_embeddings
from server.service import ServedModel

router = APIRouter(tags=["embeddings"], route_class=PlainRoute)

_MOST_AT_ONCE = 16  # inputs of one request in the engine, lest it fill the queue alone


@router.post(
    "/v1/embeddings",
    response_model=Embeddings,
    responses=computes(),
    openapi_extra=accepts(EmbeddingsRequest, input="Hi"),
)
async def create_embeddings(request: Request) -> Response:
    """Embed one or several inputs, given as text or token ids: the model's last hidden states,
    pooled.
    """
    context = context_of(request)
    body = await parse_body(request, EmbeddingsRequest, context.settings.max_request_bytes)
    model = context.service.model(body.model)
    context.note_unknown_fields(_check_options(body, model))
    inputs = await _inputs(request, context, model, body)
    requests = _pooling_requests(body, inputs, body.pooling or context.settings.pooling_type)
    generations = generate(
        context,
        model.engine,
        requests,
        record_of(request),
        multiplying="input",
        most_at_once=_MOST_AT_ONCE,
    )
    choices = await while_connected(request, gather_choices(generations))
    answer = bytearray()
    for piece in render_embeddings(body, choices):
        answer += piece
        await asyncio.sleep(0)  # others have their turn between the pieces
    return Response(bytes(answer), media_type="application/json")


def _check_options(body: EmbeddingsRequest, model: ServedModel) -> list[str]:
    """Refuse options that the body and the model alone show to be wrong.

    Returns:
        Names of unknown fields.

    Raises:
        RequestError: naming the field.
    """
    unknown = refuse_unsupported(body)
    check_truncation(body)
    size = model.info.hidden_size
    if body.dimensions is not None and body.dimensions > size:
        raise RequestError(f"dimensions: this model's embeddings have {size}.", param="dimensions")
    return unknown


async def _inputs(
    request: Request, context: ServerContext, model: ServedModel, body: EmbeddingsRequest
) -> Sequence[Sequence[int]]:
    """Return the token ids of every input, none longer than the model's context.

    Raises:
        RequestError: naming what is wrong with `input`.
        ClientDisconnect: the client left.
    """
    limits = context.limits(model)
    encoded = await encode_prompts(
        request,
        model.tokenizer,
        body.input,
        limits.max_model_len,
        add_special_tokens=body.add_special_tokens is not False,
        param="input",
    )
    inputs = truncated(body, encoded, limits)
    for each in inputs:
        check_token_ids(each, limits, "input")
        if len(each) > limits.max_model_len:
            message = f"input: {len(each)} tokens; the model takes {limits.max_model_len}."
            raise PromptTooLong(message, param="input")
    return inputs


def _pooling_requests(
    body: EmbeddingsRequest, inputs: Sequence[Sequence[int]], pooling: Literal["mean", "last"]
) -> list[GenerationRequest]:
    """Make one engine request per input, which computes it and generates nothing."""
    answer_id = f"embd-{secrets.token_hex(16)}"
    return [
        GenerationRequest(
            request_id=f"{answer_id}-{index}",
            prompt_token_ids=tuple(each),
            sampling=SamplingParams(temperature=0.0, max_tokens=0),
            pooling=pooling,
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            output_interval=0,
        )
        for index, each in enumerate(inputs)
    ]
