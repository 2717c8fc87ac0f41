"""POST /v1/chat/completions."""

from functools import partial

from fastapi import APIRouter, Request, Response

from server.body import parse_body
from server.context import Context
from server.convert import check_options
from server.generation import generate_answer
from server.openapi import accepts, streams
from server.prompts import check_template_options, encode_messages, template_options
from server.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from server.render.chat import ChatRenderer
from server.tools import marks_are_special, output_format

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses=streams(ChatCompletionChunk),
    openapi_extra=accepts(ChatCompletionRequest),
)
async def create_chat_completion(request: Request, context: Context) -> Response:
    """Answer a conversation."""
    body = await parse_body(request, ChatCompletionRequest, context.settings.max_request_bytes)
    model = context.service.model(body.model)
    check_options(body)
    check_template_options(body)
    prompt = await encode_messages(
        model.tokenizer, body.messages, model.info.max_model_len, template_options(body)
    )
    expected = output_format(body, model.tokenizer, prompt, context.settings)
    if expected.tools is not None and marks_are_special(expected.tool_form):
        body.skip_special_tokens = False
    return await generate_answer(
        request,
        context,
        model,
        body,
        [prompt],
        id_prefix="chatcmpl-",
        renderer_type=partial(ChatRenderer, output_format=expected),
    )
