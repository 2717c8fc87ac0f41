"""POST /v1/chat/completions."""

from functools import partial

from fastapi import APIRouter, Request, Response

from server.body import parse_body
from server.context import context_of
from server.conversation import prepare_chat
from server.generation import generate_answer
from server.openapi import accepts, streams
from server.plain_route import PlainRoute
from server.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from server.render.chat import ChatRenderer

router = APIRouter(tags=["chat"], route_class=PlainRoute)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses=streams(ChatCompletionChunk),
    openapi_extra=accepts(
        ChatCompletionRequest, messages=[{"role": "user", "content": "Hi"}], max_tokens=16
    ),
)
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    context = context_of(request)
    body = await parse_body(request, ChatCompletionRequest, context.settings.max_request_bytes)
    model = context.service.model(body.model)
    prepared = await prepare_chat(request, context, model, body)
    return await generate_answer(
        request,
        context,
        model,
        body,
        [prepared.prompt],
        structure=prepared.structure,
        id_prefix="chatcmpl-",
        renderer_type=partial(ChatRenderer, output_format=prepared.expected, echo=prepared.echo),
    )
