"""Resolves MODEL, as the user names it, to a local directory."""

import os
import re
from pathlib import Path

from engine.checkpoint.builtin import BUILTIN_MODELS, require_builtin_file
from engine.checkpoint.cache import Progress, building, cache_root, converted_directory
from engine.checkpoint.directory import check_directory
from engine.checkpoint.hub import download
from engine.errors import ModelLoadError

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def resolve_model(
    name: str, *, revision: str | None = None, progress: Progress | None = None
) -> Path:
    """Return a local directory in the Hugging Face layout for a model's name.

    Args:
        name: A built-in alias, a directory, a .gguf file, or a hub id, tried in this order.
        revision: A hub id's branch, tag or commit; None: its default branch.
        progress: Called with (what is being done, fraction done) while something takes time.

    Raises:
        ModelLoadError: There is no such model, or it cannot be served (see the subclasses).
    """
    report = progress or (lambda text, fraction: None)
    path = Path(os.path.expanduser(name))  # unlike Path.expanduser, leaves ~nobody alone
    if revision is not None and (name in BUILTIN_MODELS or path.exists()):
        raise ModelLoadError(f"--revision is for hub ids; {name!r} is none.")
    if name in BUILTIN_MODELS:
        return _converted(require_builtin_file(name), report)
    if path.is_file() and path.suffix == ".gguf":
        return _converted(path, report)
    if path.is_file():
        raise ModelLoadError(f"{path} is a file, but not a .gguf file.")
    if not path.is_dir():
        path = _from_hub(name, revision)
    check_directory(path)
    return path


def _from_hub(name: str, revision: str | None) -> Path:
    if name.endswith(".gguf") or not _HUB_ID.fullmatch(name):
        raise ModelLoadError(
            f"No such file or directory: {name!r}. Built in: {', '.join(BUILTIN_MODELS)}."
        )
    return download(name, revision)


def _converted(file: Path, progress: Progress) -> Path:
    """Return the directory of a converted GGUF file; converts it the first time."""
    directory = converted_directory(file, progress)
    if not directory.is_dir():
        # Imported here: it needs numpy and gguf, which a second start does without.
        from engine.checkpoint.gguf_convert import convert_gguf

        try:
            with building(directory) as scratch:
                convert_gguf(file, scratch, progress)
        except OSError as error:
            raise ModelLoadError(
                f"The cache {cache_root()} cannot take the converted model: {error}. "
                "The environment variable ADADECODE_CACHE can name another directory."
            ) from error
    return directory
