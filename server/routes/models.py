"""GET /v1/models and /v1/models/{id}."""

from typing import Literal

from fastapi import APIRouter, Request

from server.context import ServerContext, context_of
from server.protocol.common import ResponseModel
from server.sampling_defaults import SamplingDefaults

router = APIRouter(tags=["models"])


class EarlyExitCard(ResponseModel):
    """Where drafts come from: exits, and look-ups in the text itself."""

    exit_layers: list[int]
    has_lookup: bool
    num_layers: int
    max_draft_tokens: int


class ModelCard(ResponseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "adadecode"
    root: str
    parent: None = None
    max_model_len: int
    early_exit: EarlyExitCard
    sampling_defaults: SamplingDefaults  # of requests that leave them out


class ModelList(ResponseModel):
    """All names under which the model is served."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/v1/models")
@router.get("/v1/models/", include_in_schema=False)  # no id is empty
async def list_models(request: Request) -> ModelList:
    """The names that requests may use."""
    context = context_of(request)
    return ModelList(data=[_card(context, name) for name in context.service.model_names])


@router.get("/v1/models/{model_id:path}")
async def retrieve_model(model_id: str, request: Request) -> ModelCard:
    """A served model by its id, which may contain slashes."""
    context = context_of(request)
    return _card(context, model_id)


def _card(context: ServerContext, name: str) -> ModelCard:
    model = context.service.model(name)
    info = model.info
    return ModelCard(
        id=name,
        created=context.service.created,
        root=context.service.model_names[0],
        max_model_len=info.max_model_len,
        early_exit=EarlyExitCard(
            exit_layers=info.exit_layers,
            has_lookup=info.has_lookup,
            num_layers=info.num_layers,
            max_draft_tokens=info.max_draft_tokens,
        ),
        sampling_defaults=model.defaults,
    )
