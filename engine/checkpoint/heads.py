"""Finds the exit heads that belong to a model, for when the user names none."""

from pathlib import Path

from engine.checkpoint.builtin import BUILTIN_MODELS, builtin_file
from engine.checkpoint.cache import converted_directory, is_conversion

_SHIPPED_HEADS = Path(__file__).parents[2] / "configs" / "heads"


def find_heads(model: str, directory: Path) -> Path | None:
    """Return the directory of a model's exit heads, or None if it has none.

    Those beside the weights, which `heads train` writes, come before those that we ship.

    Args:
        model: MODEL as the user named it.
        directory: What `resolve_model` returned for it.
    """
    own = directory / "exit_heads"
    if _are_in(own):
        return own
    alias = model if model in BUILTIN_MODELS else _alias_of(directory)
    shipped = _SHIPPED_HEADS / (alias or "")
    return shipped if alias and _are_in(shipped) else None


def _are_in(path: Path) -> bool:
    return (path / "heads.json").is_file()


def _alias_of(directory: Path) -> str | None:
    """Return the alias of the built-in model whose conversion the directory is, if any."""
    if not is_conversion(directory):
        return None
    for alias in BUILTIN_MODELS:
        file = builtin_file(alias)
        if file and converted_directory(file, lambda *_: None) == directory:
            return alias
    return None
