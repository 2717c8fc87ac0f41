"""POST /tokenize and /detokenize, GET /tokenizer_info, as in vLLM."""

from dataclasses import asdict

from fastapi import APIRouter, Request, Response
from msgspec import json

from engine.errors import RequestError
from server.body import parse_body
from server.context import context_of
from server.convert import check_token_ids, check_truncation, truncated
from server.openapi import accepts, errors
from server.prompts import (
    check_template_options,
    decode_tokens,
    encode_messages,
    encode_text,
    template_options,
)
from server.protocol.chat import TemplateFields
from server.protocol.common import refuse_unsupported
from server.protocol.tokenize import (
    Detokenization,
    DetokenizeRequest,
    Tokenization,
    TokenizerCard,
    TokenizeRequest,
)
from server.service import ServedModel

router = APIRouter(tags=["tokens"])


@router.post(
    "/tokenize",
    response_model=Tokenization,
    responses=errors(400, 404, 408, 413, 415, 500, 503),
    openapi_extra=accepts(TokenizeRequest, prompt="Hi"),
)
async def tokenize(request: Request) -> Response:
    """Return the token ids of a text, or of a conversation in the model's chat template."""
    context = context_of(request)
    body = await parse_body(request, TokenizeRequest, context.settings.max_request_bytes)
    model = context.service.model(body.model)
    context.note_unknown_fields(refuse_unsupported(body))
    check_truncation(body)
    (tokens,) = truncated(body, [await _tokens(request, model, body)], context.limits(model))
    piece = model.tokenizer.token_piece

    def render() -> bytes:
        # Of our own values, there may be a million: checking them would hold up other threads.
        answer = Tokenization.model_construct(
            count=len(tokens),
            max_model_len=model.info.max_model_len,
            tokens=list(tokens),
            token_strs=[piece(token_id) for token_id in tokens] if body.return_token_strs else None,
        )
        return json.encode(dict(answer))

    content = await context.texts.run(request, render, len(tokens))
    return Response(content, media_type="application/json")


@router.post(
    "/detokenize",
    responses=errors(400, 404, 408, 413, 415, 500, 503),
    openapi_extra=accepts(DetokenizeRequest, tokens=[1, 2]),
)
async def detokenize(request: Request) -> Detokenization:
    """Return the text of token ids."""
    context = context_of(request)
    body = await parse_body(request, DetokenizeRequest, context.settings.max_request_bytes)
    model = context.service.model(body.model)
    context.note_unknown_fields(refuse_unsupported(body))
    check_token_ids(body.tokens, context.limits(model), "tokens")
    return Detokenization(prompt=await decode_tokens(request, model.tokenizer, body.tokens))


@router.get("/tokenizer_info", responses=errors(500, 503))
async def tokenizer_info(request: Request) -> TokenizerCard:
    """What a client needs to build prompts itself: special tokens and the chat template."""
    context = context_of(request)
    model = context.service.model(None)
    return TokenizerCard(**asdict(model.tokenizer.card), model_max_length=model.info.max_model_len)


async def _tokens(request: Request, model: ServedModel, body: TokenizeRequest) -> list[int]:
    max_model_len = model.info.max_model_len
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("Give either prompt or messages.", param="prompt")
    if body.prompt is not None:
        for name in TemplateFields.model_fields:
            if getattr(body, name) is not None:
                raise RequestError(f"{name} needs messages.", param=name)
        return await encode_text(
            request,
            model.tokenizer,
            body.prompt,
            max_model_len,
            add_special_tokens=body.add_special_tokens is not False,
        )
    if body.add_special_tokens:
        message = "add_special_tokens: a chat template writes the special tokens itself."
        raise RequestError(message, param="add_special_tokens", code="unsupported_parameter")
    assert body.messages is not None
    check_template_options(body)
    template = template_options(body, model.tokenizer)
    return await encode_messages(request, model.tokenizer, body.messages, max_model_len, template)
