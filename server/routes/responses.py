"""POST /v1/responses; what would need stored responses is refused."""

from functools import partial

from fastapi import APIRouter, Request
from fastapi import Response as HttpResponse

from server.body import parse_body
from server.context import context_of
from server.conversation import prepare_chat
from server.errors import ResponseNotStored
from server.generation import generate_answer
from server.openapi import accepts, errors, streams
from server.protocol.response_events import ResponseStreamEvent
from server.protocol.responses import Response, ResponsesRequest
from server.render.responses import ResponsesRenderer
from server.responses import check_responses_options, naming_responses_fields, to_chat_request

router = APIRouter(tags=["responses"])
_STORED = "/v1/responses/{response_id}"


@router.post(
    "/v1/responses",
    response_model=Response,
    responses=streams(ResponseStreamEvent, end=""),
    openapi_extra=accepts(ResponsesRequest, input="Hi", max_output_tokens=16),
)
async def create_response(request: Request) -> HttpResponse:
    """Answer an input: a text, or the items of a conversation."""
    context = context_of(request)
    body = await parse_body(request, ResponsesRequest, context.settings.max_request_bytes)
    model = context.service.model(body.model)
    check_responses_options(body)
    with naming_responses_fields():
        chat = to_chat_request(body)
        prepared = await prepare_chat(request, context, model, chat, api="responses", sent=body)
        return await generate_answer(
            request,
            context,
            model,
            chat,
            [prepared.prompt],
            structure=prepared.structure,
            id_prefix="resp_",
            renderer_type=partial(
                ResponsesRenderer,
                body,
                output_format=prepared.expected,
                defaults=model.defaults,
            ),
        )


@router.get(_STORED, status_code=404, responses=errors(404))
@router.delete(_STORED, status_code=404, responses=errors(404))
@router.get(f"{_STORED}/input_items", status_code=404, responses=errors(404))
@router.post(f"{_STORED}/cancel", status_code=404, responses=errors(404))
async def refuse_stored(response_id: str) -> HttpResponse:
    """Always 404: responses are not stored here (`store` is false)."""
    raise ResponseNotStored(response_id)
