"""Finds the exit heads that belong to a model, for when the user names none."""

from pathlib import Path

from engine.checkpoint.builtin import BUILTIN_MODELS, builtin_file
from engine.checkpoint.cache import converted_directory

_SHIPPED_HEADS = Path(__file__).parents[2] / "configs" / "heads"


def find_heads(model: str, directory: Path) -> Path | None:
    """Return the directory of a model's exit heads, or None if it has none.

    Args:
        model: MODEL as the user named it.
        directory: What `resolve_model` returned for it.
    """
    alias = model if model in BUILTIN_MODELS else _alias_of(directory)
    candidates = [_SHIPPED_HEADS / alias] if alias else []
    candidates.append(directory / "exit_heads")
    return next((path for path in candidates if (path / "heads.json").is_file()), None)


def _alias_of(directory: Path) -> str | None:
    """Return the alias of the built-in model whose conversion the directory is, if any."""
    for alias in BUILTIN_MODELS:
        file = builtin_file(alias)
        if file and converted_directory(file, lambda *_: None) == directory:
            return alias
    return None
