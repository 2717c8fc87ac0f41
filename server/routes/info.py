"""GET /load and /server_info: how busy the server is and how it is set up."""

from typing import Any

from fastapi import APIRouter, Request

from server.context import context_of
from server.openapi import errors
from server.protocol.common import ResponseModel
from server.public_settings import public_settings
from server.sampling_defaults import SamplingDefaults
from server.service import ServedModel
from server.version import VERSION

router = APIRouter(tags=["operations"])


class Load(ResponseModel):
    """How much is being served."""

    server_load: int  # choices and embeddings that run or wait


class ServedModelInfo(ResponseModel):
    """The loaded model."""

    max_model_len: int
    vocab_size: int
    num_layers: int
    hidden_size: int
    exit_layers: list[int]
    has_lookup: bool  # drafts are also looked up in the text itself
    max_draft_tokens: int
    backend: str
    device: str
    dtype: str
    numbers: str  # the same, and what weights are kept as if that is another
    num_blocks: int
    block_size: int
    sampling_defaults: SamplingDefaults  # of requests that leave them out


class ServerInfo(ResponseModel):
    """The server's version, state and settings, without secrets."""

    version: str
    state: str
    model_names: list[str]
    settings: dict[str, Any]
    model: ServedModelInfo | None  # null while it loads


@router.get("/load", responses=errors(401))
async def load(request: Request) -> Load:
    """How many generations and embeddings run or wait; 0 while the model loads."""
    context = context_of(request)
    model = context.service.loaded_model
    if model is None:
        return Load(server_load=0)
    stats = model.engine.stats()
    return Load(server_load=stats.num_running + stats.num_waiting)


@router.get("/server_info", responses=errors(401))
async def server_info(request: Request) -> ServerInfo:
    """Version, state, settings and the model's figures."""
    context = context_of(request)
    service = context.service
    model = service.loaded_model
    return ServerInfo(
        version=VERSION,
        state=service.state,
        model_names=list(service.model_names),
        settings=public_settings(context.settings),
        model=_shown(model) if model else None,
    )


def _shown(model: ServedModel) -> ServedModelInfo:
    """Return what is shown of a model; the engine may know more."""
    names = ServedModelInfo.model_fields.keys() - {"sampling_defaults"}
    return ServedModelInfo(
        **{name: getattr(model.info, name) for name in names}, sampling_defaults=model.defaults
    )
