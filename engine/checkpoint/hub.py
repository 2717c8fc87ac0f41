"""Checkpoints from the Hugging Face hub: weights as safetensors, JSON files, nothing that runs."""

from pathlib import Path

from engine.checkpoint.builtin import BUILTIN_MODELS
from engine.errors import ModelLoadError

_ALLOWED_FILES = [
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "exit_heads/heads.json",
    "exit_heads/heads.safetensors",
]


_MAX_REASON_CHARS = 300


def download(model_id: str, revision: str | None = None) -> Path:
    """Download a hub repository; returns its local snapshot in the hub's own cache.

    Args:
        revision: A branch, tag or commit; None: the default branch.

    Raises:
        ModelLoadError: The hub cannot be reached or does not have it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=_ALLOWED_FILES))
    except Exception as error:  # its HTTP library's own errors, too, which differ by release
        reason = " ".join(str(error).split())[:_MAX_REASON_CHARS]  # its first line is a status
        asked = model_id if revision is None else f"{model_id} at {revision}"
        raise ModelLoadError(
            f"{asked} is neither a local path nor built in ({', '.join(BUILTIN_MODELS)}), "
            f"and the hub did not give it: {reason or type(error).__name__}"
        ) from error
