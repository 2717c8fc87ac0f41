"""The summary printed at start-up: what is served, how, and how to talk to it."""

import json
from collections.abc import Mapping
from pathlib import Path

from engine import EngineInfo
from server.sampling_defaults import SamplingDefaults
from server.settings import ServerSettings
from server.version import VERSION


def start_up_summary(
    settings: ServerSettings,
    info: EngineInfo,
    heads: Path | None,
    url: str,
    defaults: SamplingDefaults,
) -> str:
    """Return lines on the model, exits, KV cache, address and a first request to try."""
    num_tokens = info.num_blocks * info.block_size
    body: dict[str, object] = {
        "model": settings.model_names[0],
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    }
    if defaults.temperature == SamplingDefaults().temperature:
        body["temperature"] = 0.2  # small models ramble at OpenAI's default
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.api_keys else ""
    curl = (
        f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'"
    )
    rows = {
        "model": f"{settings.model_names[0]}: {info.num_layers} layers, {info.numbers} on "
        f"{info.device}, {info.backend} kernels, context {info.max_model_len:,} tokens",
        "exits": _exits(settings, info, heads),
        "KV cache": f"{num_tokens:,} tokens in blocks of {info.block_size}: "
        f"{num_tokens / info.max_model_len:.1f} requests of full length",
        **({"defaults": _defaults(changed)} if (changed := defaults.changed()) else {}),
        "serving": f"{url}/v1  (see also /openapi.json, /metrics)",
        **({"page": f"{url}/  (chat in a browser)"} if settings.ui else {}),
        "try": curl,
    }
    lines = [f"AdaDecode Server {VERSION}", *(f"  {key:<9}{row}" for key, row in rows.items())]
    return "\n".join(lines)


def _defaults(changed: Mapping[str, float]) -> str:
    values = ", ".join(f"{name} {value}" for name, value in changed.items())
    return f"{values}, where a request does not say (--generation-config)"


def _exits(settings: ServerSettings, info: EngineInfo, heads: Path | None) -> str:
    if not settings.early_exit:
        return "off (--no-early-exit)" + (", --heads unused" if settings.heads else "")
    drafts = f"up to {info.max_draft_tokens} drafts"
    if info.has_lookup:
        drafts += ", also looked up in the text itself"
    if heads is None:
        what = drafts if info.has_lookup else "decoding plainly"
        return f"none: no exit heads for this model (--heads DIR gives some); {what}"
    layers = ", ".join(str(n) if n else "0 (before the first)" for n in info.exit_layers) or "none"
    return f"at layer {layers} of {info.num_layers}, {drafts}, heads {heads}"
