"""POST /v1/completions."""

from functools import partial

from fastapi import APIRouter, Request, Response

from server.body import parse_body
from server.context import context_of
from server.convert import check_options
from server.generation import generate_answer
from server.openapi import accepts, streams
from server.plain_route import PlainRoute
from server.prompts import encode_prompts
from server.protocol.completions import Completion, CompletionRequest
from server.render.best_of import BestOfRenderer
from server.render.completions import CompletionRenderer
from server.structures import asked_structure

router = APIRouter(tags=["completions"], route_class=PlainRoute)


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses=streams(Completion),
    openapi_extra=accepts(CompletionRequest, prompt="Hi", max_tokens=16),
)
async def create_completion(request: Request) -> Response:
    """Continue one or several prompts, given as text or token ids."""
    context = context_of(request)
    body = await parse_body(request, CompletionRequest, context.settings.max_request_bytes)
    model = context.service.model(body.model)
    context.note_unknown_fields(check_options(body))
    structure = asked_structure(body)
    prompts = await encode_prompts(
        request,
        model.tokenizer,
        body.prompt,
        model.info.max_model_len,
        add_special_tokens=body.add_special_tokens is not False,
    )
    return await generate_answer(
        request,
        context,
        model,
        body,
        prompts,
        structure=structure,
        id_prefix="cmpl-",
        renderer_type=partial(BestOfRenderer if body.has_rivals else CompletionRenderer, body),
    )
